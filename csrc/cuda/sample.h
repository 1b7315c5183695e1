// Drawing a batch on a GPU; as in attack.h nothing here allocates, waits or reads device memory.
#pragma once

#include "../sample.h"

namespace dat::cuda {

// An index that is none of an image is taken for the nearest that is.
void sample_images(const Samples& samples, int device, void* stream);

}  // namespace dat::cuda
