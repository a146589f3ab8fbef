// Products with 8-bit weights: rows to integers before the product, and back to numbers after it.
#include "common.hpp"

namespace {

// ---- the rotation of a row ----------------------------------------------------------------------------------------------

typedef float Lanes __attribute__((vector_size(32)));
constexpr std::int64_t WIDTH = 8;  // of Lanes
constexpr std::int64_t FEW = 8, MANY = 16;

// N vectors, each becomes a sum of all with the signs of a Hadamard matrix.
template <int N>
INLINE void mix(Lanes* v) {
    if constexpr (N > 1) {
        mix<N / 2>(v);
        mix<N / 2>(v + N / 2);
#pragma GCC unroll 8
        for (int i = 0; i < N / 2; i++) {
            Lanes a = v[i], b = v[i + N / 2];
            v[i] = a + b;
            v[i + N / 2] = a - b;
        }
    }
}

// N runs of `run` floats each, mixed. Where `run` is no multiple of WIDTH this reads and writes up to 7 floats beyond each;
// the last part comes first, so that what it writes too much is put right by what follows.
template <int N>
INLINE void mix_runs(const float* from, float* to, std::int64_t run) {
    for (std::int64_t at = (run - 1) / WIDTH * WIDTH; at >= 0; at -= WIDTH) {
        Lanes v[N];
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) std::memcpy(&v[i], from + i * run + at, sizeof(Lanes));
        mix<N>(v);
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) std::memcpy(to + i * run + at, &v[i], sizeof(Lanes));
    }
}

// Elements a stride apart are mixed (see ops/quantized.py), so that each sum is over contiguous runs. The row is in `row`,
// with room for 8 floats more, as in `other`; returned is which of the two it is in then.
INLINE float* rotate(float* row, float* other, std::int64_t width, std::int64_t block) {
    std::int64_t run = width / block;
    if (block == FEW * MANY) {
        for (std::int64_t at = 0; at < width; at += FEW * run) mix_runs<FEW>(row + at, other + at, run);
        mix_runs<MANY>(other, other, FEW * run);
        return other;
    }
    for (; run < width; run *= 2)
        for (std::int64_t at = 0; at < width; at += 2 * run) {
            float* first = row + at;
            float* second = first + run;
#pragma omp simd
            for (std::int64_t i = 0; i < run; i++) {
                float a = first[i], b = second[i];
                first[i] = a + b;
                second[i] = a - b;
            }
        }
    return row;
}

// ---- a row to 8 bits ----------------------------------------------------------------------------------------------------

// The row times signs, rotated, over its largest magnitude: 128 + round(127 v / max).
template <typename T>
INLINE void quantize_row(const T* x, const float* signs, std::uint8_t* q, float* scale, float* rows, std::int64_t width,
                         std::int64_t block) {
#pragma omp simd
    for (std::int64_t i = 0; i < width; i++) rows[i] = load(x[i]) * signs[i];
    float* row = rotate(rows, rows + width + WIDTH, width, block);
    float largest = 0, poison = 0;
#pragma omp simd reduction(max : largest) reduction(+ : poison)
    for (std::int64_t i = 0; i < width; i++) {
        float magnitude = row[i] < 0.0f ? -row[i] : row[i];
        largest = magnitude > largest ? magnitude : largest;
        poison += row[i] * 0.0f;  // NaN where anything is not finite: then so is all that follows
    }
    float factor = largest > 0.0f ? 127.0f / largest : 0.0f;
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: the sum's lowest byte is the rounded number
#pragma omp simd
    for (std::int64_t i = 0; i < width; i++) {
        float shifted = row[i] * factor + ROUND;
        std::uint32_t bits;
        std::memcpy(&bits, &shifted, 4);
        q[i] = std::uint8_t(bits + 128);
    }
    *scale = largest / (127.0f * std::sqrt(float(block))) + poison;
}

CLONES void quantize_rows(const float* x, const float* signs, std::uint8_t* q, float* scale, float* room,
                          std::int64_t width, std::int64_t block) {
    quantize_row(x, signs, q, scale, room, width, block);
}
CLONES void quantize_rows(const bf16* x, const float* signs, std::uint8_t* q, float* scale, float* room,
                          std::int64_t width, std::int64_t block) {
    quantize_row(x, signs, q, scale, room, width, block);
}

template <typename T>
void quantize(const T* x, std::int64_t stride, const float* signs, std::uint8_t* q, float* scales, std::int64_t rows,
              std::int64_t width, std::int64_t block) {
#pragma omp parallel
    {
        float* room = new float[2 * (width + WIDTH)]();
#pragma omp for schedule(static)
        for (std::int64_t m = 0; m < rows; m++)
            quantize_rows(x + m * stride, signs, q + m * width, scales + m, room, width, block);
        delete[] room;
    }
}

// ---- a product's rows times their scales ----------------------------------------------------------------------------------

template <typename T>
INLINE void scale_row(const float* x, float factor, const float* bias, T* out, std::int64_t width) {
    if (bias) {
#pragma omp simd
        for (std::int64_t i = 0; i < width; i++) store(out[i], x[i] * factor + bias[i]);
    } else {
#pragma omp simd
        for (std::int64_t i = 0; i < width; i++) store(out[i], x[i] * factor);
    }
}

CLONES void scale_rows(const float* x, float factor, const float* bias, float* out, std::int64_t width) {
    scale_row(x, factor, bias, out, width);
}
CLONES void scale_rows(const float* x, float factor, const float* bias, bf16* out, std::int64_t width) {
    scale_row(x, factor, bias, out, width);
}

template <typename T>
void scale(const float* x, const float* scales, const float* bias, T* out, std::int64_t stride, std::int64_t rows,
           std::int64_t width) {
    PARALLEL_FOR
    for (std::int64_t m = 0; m < rows; m++) scale_rows(x + m * width, scales[m], bias, out + m * stride, width);
}

}  // namespace

EXPORT thalweg_quantize_rows_float32(const float* x, std::int64_t stride, const float* signs, std::uint8_t* q,
                                     float* scales, std::int64_t rows, std::int64_t width, std::int64_t block) {
    quantize(x, stride, signs, q, scales, rows, width, block);
}
EXPORT thalweg_quantize_rows_bfloat16(const bf16* x, std::int64_t stride, const float* signs, std::uint8_t* q,
                                      float* scales, std::int64_t rows, std::int64_t width, std::int64_t block) {
    quantize(x, stride, signs, q, scales, rows, width, block);
}
EXPORT thalweg_scale_rows_float32(const float* x, const float* scales, const float* bias, float* out,
                                  std::int64_t stride, std::int64_t rows, std::int64_t width) {
    scale(x, scales, bias, out, stride, rows, width);
}
EXPORT thalweg_scale_rows_bfloat16(const float* x, const float* scales, const float* bias, bf16* out,
                                   std::int64_t stride, std::int64_t rows, std::int64_t width) {
    scale(x, scales, bias, out, stride, rows, width);
}
