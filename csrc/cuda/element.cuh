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
template <class S>
__device__ S narrow(double value) {
  return static_cast<S>(value);
}
template <>
__device__ inline __half narrow(double value) {
  return __float2half_rn(static_cast<float>(value));
}
template <>
__device__ inline __nv_bfloat16 narrow(double value) {
  return __float2bfloat16_rn(static_cast<float>(value));
}

// Held as 32-bit words: an array of 16-bit elements would take a register for each.
template <class S, int N>
struct alignas(N * sizeof(S) < 16 ? N * sizeof(S) : 16) Slot {
  uint32_t word[N * sizeof(S) / 4];

  __device__ S get(int k) const {
    S value;
    if constexpr (sizeof(S) == 2) {
      const uint16_t bits = static_cast<uint16_t>(word[k / 2] >> (k % 2 * 16));
      memcpy(&value, &bits, 2);
    } else {
      memcpy(&value, word + k * (sizeof(S) / 4), sizeof(S));
    }
    return value;
  }
  __device__ void set(int k, S value) {  // of a slot of zeros
    if constexpr (sizeof(S) == 2) {
      uint16_t bits;
      memcpy(&bits, &value, 2);
      word[k / 2] |= uint32_t{bits} << (k % 2 * 16);
    } else {
      memcpy(word + k * (sizeof(S) / 4), &value, sizeof(S));
    }
  }
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
    reinterpret_cast<decltype(type)*>(vector.data)[i * vector.stride] = narrow<decltype(type)>(value);
  });
}

// A 64-bit division takes longer than the rest of a task's preparation.
__device__ inline int64_t quotient(int64_t a, int64_t b) {
  return (a | b) >> 32 ? a / b : static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
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

enum class Reach {
  whole,    // every slot is whole and aligned
  edges,    // all in order, but an image's first and last slot may be partial and an operand misaligned
  anywhere  // strided
};

// One operand of one image. Slot j covers the elements [j * N - shift, ...) as far as the image reaches.
template <Reach kReach>
class Row {
 public:
  __device__ Row(const Operand& operand, const Walk& walk, int64_t image, int slot, int shift)
      : operand_(operand), walk_(walk), shift_(shift) {
    const int size = bytes_of(operand.dtype), bytes = slot * size < 16 ? slot * size : 16;
    data_ = operand.data + image * operand.image_stride * size;
    vector_ = operand.linear && (reinterpret_cast<uintptr_t>(data_) - shift * size) % bytes == 0;
  }

  template <class SlotOf>
  __device__ const void* address(int64_t j) const {  // of a whole slot
    return data_ + j * int64_t{sizeof(SlotOf)};
  }

  template <class S, int N>
  __device__ Slot<S, N> load(int64_t j) const {
    const int64_t first = first_element<N>(j);
    if (in_one_access<N>(first)) return *reinterpret_cast<const Slot<S, N>*>(data_ + first * int64_t{sizeof(S)});
    if constexpr (kReach == Reach::anywhere) return load_anywhere<S, N>(data_, first, operand_, walk_);
    Slot<S, N> slot = {};
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (first + k >= 0 && first + k < walk_.numel) slot.set(k, reinterpret_cast<const S*>(data_)[first + k]);
    return slot;
  }

  template <class S, int N>
  __device__ void store(int64_t j, const Slot<S, N>& slot) const {
    const int64_t first = first_element<N>(j);
    if (in_one_access<N>(first)) {
      *reinterpret_cast<Slot<S, N>*>(data_ + first * int64_t{sizeof(S)}) = slot;
    } else if constexpr (kReach == Reach::anywhere) {
      store_anywhere<S, N>(data_, first, operand_, walk_, slot);
    } else {
#pragma unroll
      for (int k = 0; k < N; ++k)
        if (first + k >= 0 && first + k < walk_.numel) reinterpret_cast<S*>(data_)[first + k] = slot.get(k);
    }
  }

 private:
  template <int N>
  __device__ int64_t first_element(int64_t j) const {
    return kReach == Reach::whole ? j * N : j * N - shift_;
  }
  template <int N>
  __device__ bool in_one_access(int64_t first) const {
    return kReach == Reach::whole || (vector_ && first >= 0 && first + N <= walk_.numel);
  }

  // Not inlined: dtypes times callers would make a kernel that takes a minute to compile.
  template <class S, int N>
  __device__ __noinline__ static Slot<S, N> load_anywhere(const char* data, int64_t first, const Operand& operand,
                                                          const Walk& walk) {
    Slot<S, N> slot = {};
    for (int k = 0; k < N; ++k)
      if (first + k >= 0 && first + k < walk.numel)
        slot.set(k, reinterpret_cast<const S*>(data)[offset_of(operand, walk, first + k)]);
    return slot;
  }
  template <class S, int N>
  __device__ __noinline__ static void store_anywhere(char* data, int64_t first, const Operand& operand,
                                                     const Walk& walk, Slot<S, N> slot) {
    for (int k = 0; k < N; ++k)
      if (first + k >= 0 && first + k < walk.numel)
        reinterpret_cast<S*>(data)[offset_of(operand, walk, first + k)] = slot.get(k);
  }

  const Operand& operand_;
  const Walk& walk_;
  char* data_;
  int shift_;
  bool vector_;
};

template <Reach kReach, class T, class S, int N>
__device__ void store_slot(const Row<kReach>& row, int64_t j, const T (&values)[N], Slot<S, N> slot) {
#pragma unroll
  for (int k = 0; k < N; ++k) slot.set(k, narrow<S>(values[k]));
  row.store(j, slot);
}

// How a kernel sees its operands. Of types known to the compiler: loaded as they are stored, converted when used.
template <class X, class V, Reach kHow>
struct Typed {
  using Real = float;
  static constexpr int kSlot = 16 / (sizeof(X) < sizeof(V) ? sizeof(X) : sizeof(V));
  static constexpr int kDepth = sizeof(X) == sizeof(V) ? 4 : 2;  // 64 bytes of each operand in flight, or 64 and 32
  static constexpr Reach kReach = kHow;
  using XSlot = Slot<X, kSlot>;
  using VSlot = Slot<V, kSlot>;

  template <class S, int N>
  __device__ static void load(const Row<kReach>& row, DType, int64_t j, Slot<S, N>& slot) {
    slot = row.template load<S, N>(j);
  }
  template <class Stored>
  __device__ static void store(const Row<kReach>& row, DType, int64_t j, const float (&values)[kSlot]) {
    store_slot(row, j, values, Stored{});
  }
};

// Of any mixture of types and strides: converted to the type of the arithmetic when loaded.
template <class T>
struct Mixed {
  using Real = T;
  static constexpr int kSlot = 4, kDepth = 1;
  static constexpr Reach kReach = Reach::anywhere;
  using XSlot = Slot<T, kSlot>;
  using VSlot = Slot<T, kSlot>;

  __device__ static void load(const Row<kReach>& row, DType dtype, int64_t j, Slot<T, kSlot>& out) {
    with_type(dtype, [&](auto type) {
      const auto slot = row.template load<decltype(type), kSlot>(j);
      for (int k = 0; k < kSlot; ++k) out.set(k, static_cast<T>(widen(slot.get(k))));
    });
  }
  template <class Stored>
  __device__ static void store(const Row<kReach>& row, DType dtype, int64_t j, const T (&values)[kSlot]) {
    with_type(dtype, [&](auto type) { store_slot(row, j, values, Slot<decltype(type), kSlot>{}); });
  }
};

}  // namespace dat::cuda
