// Reading and writing elements of any dtype, one by one or a slot (up to 16 bytes, or two times 16) at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../tensor.h"
#include "plan.h"

namespace dat::cuda {

__device__ inline double widen(double value) { return value; }
__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

// Round to nearest even.
__device__ inline void narrow(double value, double& out) { out = value; }
__device__ inline void narrow(double value, float& out) { out = static_cast<float>(value); }
__device__ inline void narrow(float value, __half& out) { out = __float2half_rn(value); }
__device__ inline void narrow(float value, __nv_bfloat16& out) { out = __float2bfloat16_rn(value); }

template <class S, int N>
struct alignas(N * sizeof(S) < 16 ? N * sizeof(S) : 16) Slot {
  S element[N];
};

// Calls body with a value of the dtype's type.
template <class Body>
__device__ void with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::float64: return body(double{});
    case DType::float32: return body(float{});
    case DType::float16: return body(__half{});
    case DType::bfloat16: return body(__nv_bfloat16{});
  }
}

struct Vector {  // one number per image: logits, weights, norms; absent where data is null
  char* data = nullptr;
  DType dtype = DType::float32;
  int64_t count = 0, stride = 1;
};

template <class T>
__device__ T read(const Vector& vector, int64_t i) {
  T value = 0;
  with_type(vector.dtype, [&](auto type) {
    value = static_cast<T>(widen(reinterpret_cast<const decltype(type)*>(vector.data)[i * vector.stride]));
  });
  return value;
}

__device__ inline void write(const Vector& vector, int64_t i, double value) {
  with_type(vector.dtype, [&](auto type) {
    narrow(value, type);
    reinterpret_cast<decltype(type)*>(vector.data)[i * vector.stride] = type;
  });
}

struct Operand {  // x, v, adv or grad
  char* data = nullptr;
  DType dtype = DType::float32;
  bool linear = true;  // in the order of the walk; otherwise through `stride`
  int64_t image_stride = 0, stride[kMaxDims] = {};
};

struct Walk {  // the order of an image's elements, see Layout
  int64_t numel = 0, size[kMaxDims] = {};
  int dims = 0;
};

__device__ inline int bytes_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

static __device__ __noinline__ int64_t offset_of(const Operand& operand, const Walk& walk, int64_t element) {
  int64_t offset = 0;
  if (walk.numel < (int64_t{1} << 32)) {  // 64-bit division is several times slower
    uint32_t rest = static_cast<uint32_t>(element);
    for (int d = 0; d < walk.dims; ++d) {
      const uint32_t size = static_cast<uint32_t>(walk.size[d]);
      offset += rest % size * operand.stride[d];
      rest /= size;
    }
  } else {
    for (int d = 0; d < walk.dims; ++d) {
      offset += element % walk.size[d] * operand.stride[d];
      element /= walk.size[d];
    }
  }
  return offset;
}

// One operand of one image. Slot j covers the elements [j * N - shift, ...) as far as the image reaches.
template <bool kStrided>
class Row {
 public:
  __device__ Row(const Operand& operand, const Walk& walk, int64_t image, int slot, int shift)
      : operand_(operand), walk_(walk), shift_(shift) {
    const int size = bytes_of(operand.dtype), bytes = slot * size < 16 ? slot * size : 16;
    data_ = operand.data + image * operand.image_stride * size;
    vector_ = (!kStrided || operand.linear) && (reinterpret_cast<uintptr_t>(data_) - shift * size) % bytes == 0;
  }

  template <class S, int N>
  __device__ Slot<S, N> load(int64_t j) const {
    const int64_t first = j * N - shift_;
    if (vector_ && first >= 0 && first + N <= walk_.numel)
      return *reinterpret_cast<const Slot<S, N>*>(data_ + first * int64_t{sizeof(S)});
    return load_elements<S, N>(data_, first, operand_, walk_);
  }

  template <class S, int N>
  __device__ void store(int64_t j, const Slot<S, N>& slot) const {
    const int64_t first = j * N - shift_;
    if (vector_ && first >= 0 && first + N <= walk_.numel)
      *reinterpret_cast<Slot<S, N>*>(data_ + first * int64_t{sizeof(S)}) = slot;
    else
      store_elements<S, N>(data_, first, operand_, walk_, slot);
  }

 private:
  // Heads, tails, and whatever is misaligned or strided. Not inlined: there are a dozen callers, and they are in a hurry.
  template <class S, int N>
  __device__ __noinline__ static Slot<S, N> load_elements(const char* data, int64_t first, const Operand& operand,
                                                          const Walk& walk) {
    Slot<S, N> slot = {};
    for (int k = 0; k < N; ++k)
      if (first + k >= 0 && first + k < walk.numel)
        slot.element[k] = reinterpret_cast<const S*>(data)[position(operand, walk, first + k)];
    return slot;
  }
  template <class S, int N>
  __device__ __noinline__ static void store_elements(char* data, int64_t first, const Operand& operand, const Walk& walk,
                                                     Slot<S, N> slot) {
    for (int k = 0; k < N; ++k)
      if (first + k >= 0 && first + k < walk.numel)
        reinterpret_cast<S*>(data)[position(operand, walk, first + k)] = slot.element[k];
  }
  __device__ static int64_t position(const Operand& operand, const Walk& walk, int64_t element) {
    return kStrided && !operand.linear ? offset_of(operand, walk, element) : element;
  }

  const Operand& operand_;
  const Walk& walk_;
  char* data_;
  int shift_;
  bool vector_;
};

// How a kernel sees its operands. Known types: loaded as they are stored, converted when used.
template <class X, class V>
struct Known {
  using Real = float;
  static constexpr int kSlot = 16 / (sizeof(X) < sizeof(V) ? sizeof(X) : sizeof(V));
  static constexpr int kDepth = sizeof(X) == sizeof(V) ? 4 : 2;  // 64 bytes of each operand in flight, or 64 and 32
  static constexpr bool kStrided = false;
  using XSlot = Slot<X, kSlot>;
  using VSlot = Slot<V, kSlot>;

  template <class S>
  __device__ static S load(const Row<kStrided>& row, DType, int64_t j) {
    return load_as(row, j, S{});
  }
  template <class S>
  __device__ static void store(const Row<kStrided>& row, DType, int64_t j, const float (&values)[kSlot]) {
    S slot;
    for (int k = 0; k < kSlot; ++k) narrow(values[k], slot.element[k]);
    row.store(j, slot);
  }

 private:
  template <class E, int N>
  __device__ static Slot<E, N> load_as(const Row<kStrided>& row, int64_t j, Slot<E, N>) {
    return row.template load<E, N>(j);
  }
};

// Any mixture of types and strides: converted to the type of the arithmetic when loaded.
template <class T>
struct Any {
  using Real = T;
  static constexpr int kSlot = 4, kDepth = 1;
  static constexpr bool kStrided = true;
  using XSlot = Slot<T, kSlot>;
  using VSlot = Slot<T, kSlot>;

  template <class S>
  __device__ static S load(const Row<kStrided>& row, DType dtype, int64_t j) {
    S out;
    with_type(dtype, [&](auto type) {
      const auto slot = row.template load<decltype(type), kSlot>(j);
      for (int k = 0; k < kSlot; ++k) out.element[k] = static_cast<T>(widen(slot.element[k]));
    });
    return out;
  }
  template <class S>
  __device__ static void store(const Row<kStrided>& row, DType dtype, int64_t j, const T (&values)[kSlot]) {
    with_type(dtype, [&](auto type) {
      Slot<decltype(type), kSlot> slot;
      for (int k = 0; k < kSlot; ++k) narrow(values[k], slot.element[k]);
      row.store(j, slot);
    });
  }
};

}  // namespace dat::cuda
