import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """For modules of tiny tensors, where waking other threads costs more than all the arithmetic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
