// Batch normalization and ReLU, forward and backward, over maps in channels_last: rows of channels, sixteen at a time.
//
// A thread takes the same rows in each call, and partial sums are added in the threads' order: equal input, equal bits.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr long LANES = 16, TILE = 16384;  // values that are summed in float before double takes over

using Floats = float __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Halves = uint16_t __attribute__((vector_size(2 * LANES)));

template <class Vector>
Vector load(const void *from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

struct Float32 {
    using Value = float;
    static Floats read(const float *from) { return load<Floats>(from); }
    static void write(float *to, Floats values) { std::memcpy(to, &values, sizeof values); }
};

struct BFloat16 {
    using Value = uint16_t;
    static Floats read(const uint16_t *from) { return (Floats)(__builtin_convertvector(load<Halves>(from), Words) << 16); }
    static void write(uint16_t *to, Floats values) {  // to the nearest, to even from halfway
        const Words bits = (Words)values, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        const Halves halves = __builtin_convertvector(values == values ? rounded : (bits >> 16 | 0x40), Halves);
        std::memcpy(to, &halves, sizeof halves);
    }
};

// The values where ReLU lets its outputs through, NaN among them; zero elsewhere.
template <bool RELU>
Floats passed(Floats values, Floats outputs) {
    return RELU ? (outputs <= 0 ? Floats{} : values) : values;
}

// Per channel, the sums over all rows of the two vectors that `of(row, channel)` gives.
template <class Of>
void sums(long rows, long channels, double *first, double *second, Of of) {
    std::vector<std::vector<double>> parts(omp_get_max_threads(), std::vector<double>(2 * channels));
    const long tile = std::max(1L, TILE / channels);
#pragma omp parallel for schedule(static)
    for (long start = 0; start < rows; start += tile)
        for (long c = 0; c < channels; c += LANES) {
            Floats one{}, two{};
            for (long row = start; row < std::min(rows, start + tile); row++) {
                const auto [x, y] = of(row, c);
                one += x, two += y;
            }
            double *part = &parts[omp_get_thread_num()][2 * c];
            for (long i = 0; i < LANES; i++) part[i] += one[i], part[LANES + i] += two[i];
        }
    for (long c = 0; c < channels; c++) {
        const long place = c / LANES * LANES * 2 + c % LANES;
        first[c] = second[c] = 0;
        for (const auto &part : parts) first[c] += part[place], second[c] += part[place + LANES];
    }
}

struct Pair {
    Floats first, second;
};

// Means and mean squares, both of the differences from `origin`.
template <class Type>
void moments(const typename Type::Value *maps, const float *origin, double *mean, double *square, long rows, long channels) {
    sums(rows, channels, mean, square, [=](long row, long c) {
        const Floats x = Type::read(maps + row * channels + c) - load<Floats>(origin + c);
        return Pair{x, x * x};
    });
    for (long c = 0; c < channels; c++) mean[c] /= rows, square[c] /= rows;
}

template <class Type, bool RELU>
void apply(const typename Type::Value *maps, const float *scale, const float *shift, typename Type::Value *output,
           long rows, long channels) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++)
        for (long c = 0; c < channels; c += LANES) {
            const long at = row * channels + c;
            const Floats y = Type::read(maps + at) * load<Floats>(scale + c) + load<Floats>(shift + c);
            Type::write(output + at, passed<RELU>(y, y));
        }
}

// The sums of the gradients that ReLU lets through, and of each times its map's difference from the mean.
template <class Type, bool RELU>
void gradient_sums(const typename Type::Value *gradient, const typename Type::Value *maps, const float *scale,
                   const float *shift, const float *mean, double *sum, double *product, long rows, long channels) {
    sums(rows, channels, sum, product, [=](long row, long c) {
        const Floats x = Type::read(maps + row * channels + c);
        const Floats y = x * load<Floats>(scale + c) + load<Floats>(shift + c);
        const Floats g = passed<RELU>(Type::read(gradient + row * channels + c), y);
        return Pair{g, g * (x - load<Floats>(mean + c))};
    });
}

// scale · gradient + slope · (map − mean) + offset
template <class Type, bool RELU>
void backward(const typename Type::Value *gradient, const typename Type::Value *maps, const float *scale,
              const float *shift, const float *mean, const float *slope, const float *offset,
              typename Type::Value *back, long rows, long channels) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++)
        for (long c = 0; c < channels; c += LANES) {
            const long at = row * channels + c;
            const Floats x = Type::read(maps + at), factor = load<Floats>(scale + c);
            const Floats g = passed<RELU>(Type::read(gradient + at), x * factor + load<Floats>(shift + c));
            const Floats centered = x - load<Floats>(mean + c);
            Type::write(back + at, factor * g + load<Floats>(slope + c) * centered + load<Floats>(offset + c));
        }
}

}  // namespace

#define EXPORT(NAME, TYPE)                                                                                     \
    extern "C" void NAME##_moments(const TYPE::Value *maps, const float *origin, double *mean, double *square, \
                                   long rows, long channels, long) {                                           \
        moments<TYPE>(maps, origin, mean, square, rows, channels);                                             \
    }                                                                                                          \
    extern "C" void NAME##_apply(const TYPE::Value *maps, const float *scale, const float *shift,              \
                                 TYPE::Value *output, long rows, long channels, long relu) {                   \
        (relu ? apply<TYPE, true> : apply<TYPE, false>)(maps, scale, shift, output, rows, channels);           \
    }                                                                                                          \
    extern "C" void NAME##_gradient_sums(                                                                      \
        const TYPE::Value *gradient, const TYPE::Value *maps, const float *scale, const float *shift,          \
        const float *mean, double *sum, double *product, long rows, long channels, long relu) {                \
        (relu ? gradient_sums<TYPE, true> : gradient_sums<TYPE, false>)(gradient, maps, scale, shift, mean,    \
                                                                        sum, product, rows, channels);         \
    }                                                                                                          \
    extern "C" void NAME##_backward(                                                                           \
        const TYPE::Value *gradient, const TYPE::Value *maps, const float *scale, const float *shift,          \
        const float *mean, const float *slope, const float *offset, TYPE::Value *back, long rows,              \
        long channels, long relu) {                                                                            \
        (relu ? backward<TYPE, true> : backward<TYPE, false>)(gradient, maps, scale, shift, mean, slope,       \
                                                              offset, back, rows, channels);                   \
    }

EXPORT(float32, Float32)
EXPORT(bfloat16, BFloat16)
