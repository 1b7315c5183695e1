"""A small campaign of kills; tests/kill_campaign.py alone is a large one."""

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).resolve().parents[1] / "kill_campaign.py"


@pytest.mark.process
def test_ten_kills_and_five_stops(tmp_path):
    """In a process of its own, which has computed nothing before it forks."""
    command = [sys.executable, str(CAMPAIGN), "--kills", "10", "--terms", "5", "--flips", "20", "--kinds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 of 20 flipped bits found; 0 failures" in done.stdout
