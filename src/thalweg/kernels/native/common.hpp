// What the kernel files share: number types, and functions of vectors that the compiler can unroll.
//
// Kernels are plain C functions over pointers, called from Python (__init__.py and its neighbours say what each argument
// is). Every output element is computed the same way whatever the number of threads, so results do not depend on it. Sums
// and exponentials are float32 (differences of long sums float64); results are rounded once, to the dtype T of the model.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(CLONES)  // a build for one instruction set
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))
#define EXPORT extern "C" __attribute__((visibility("default"))) void
#define PARALLEL_FOR _Pragma("omp parallel for schedule(static)")

namespace {

using bf16 = std::uint16_t;

INLINE float load(float x) { return x; }

INLINE float load(bf16 x) {
    std::uint32_t bits = std::uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

INLINE void store(float& to, float x) { to = x; }

// The upper half are those of the nearest bfloat16, the even one of two; NaN stays NaN.
INLINE std::uint32_t nearest_bf16(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return x != x ? 0x7fc00000u : bits + 0x7fff + ((bits >> 16) & 1);
}

INLINE void store(bf16& to, float x) { to = bf16(nearest_bf16(x) >> 16); }

// e^x to about 1e-7 relative, for x in [-87, 88]; outside it is e to the nearer end.
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    float n = std::floor(x * 1.44269504088896341f + 0.5f);
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    std::int32_t bits = (std::int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return p * scale;
}

// e^x - 1 for x <= 0, to about 1e-7 of itself: near 0, where a state lasts long, nothing else of it matters.
INLINE float exponential_minus_one(float x) {
    float p = 1.0f / 5040.0f;
    p = p * x + 1.0f / 720.0f;
    p = p * x + 1.0f / 120.0f;
    p = p * x + 1.0f / 24.0f;
    p = p * x + 1.0f / 6.0f;
    p = p * x + 0.5f;
    float near = p * x * x + x;
    float far = exponential(x) - 1.0f;
    return x > -0.35f ? near : far;
}

// log(1 + e^x)
INLINE float softplus(float x) {
    float magnitude = x < 0.0f ? -x : x;
    float z = exponential(-magnitude);  // log(1 + z) by halving 1 + z where it is above the square root of 2
    bool halved = z > 0.41421356f;
    float f = halved ? (z - 1.0f) * 0.5f : z;
    float square = f * f;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    float log = f + (p * f * square - 0.5f * square) + (halved ? 0.693147181f : 0.0f);
    return (x > 0.0f ? x : 0.0f) + log;
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE float silu(float x) { return x / (1.0f + exponential(-x)); }

constexpr std::int64_t VECTOR = 16;  // floats of the widest registers
constexpr float NOTHING = -60.0f;    // e^-60 is nothing beside 1, and its products are no denormals

constexpr std::int64_t FIELDS = 6;   // of a block: start, stop, enters, leaves, initial, final (packing.Block)

INLINE float decayed(double sum) { return sum < double(NOTHING) ? 0.0f : exponential(float(sum)); }

// As `decayed`, but never 0: what is not finite in a state is so in all that is made of it.
INLINE float decayed_state(double sum) { return exponential(sum < double(NOTHING) ? NOTHING : float(sum)); }

// Says that a result is not finite; `poison`: a sum of results times 0.
INLINE void tell(std::int64_t* finite, float poison) {
    if (!(poison == 0.0f)) __atomic_store_n(finite, std::int64_t(0), __ATOMIC_RELAXED);
}

}  // namespace
