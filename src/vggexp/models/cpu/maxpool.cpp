// 2×2 max-pool, stride 2, and ReLU in one pass, forward and backward, over maps in channels_last: (N, H, W, C).
//
// Of each maximum one byte says where it was: 0 to 3 by rows, or 4 where ReLU gives zero and so stops the gradient.
// A NaN is the greatest. Where H or W is odd, the last row or column belongs to no window and is left as it is.
#include <cstdint>

namespace {

constexpr int NOWHERE = 4;

struct Float32 {
    using Value = float;
    using Place = int32_t;  // of a value's size, so that both fill vectors alike
    static float read(float value) { return value; }
    static bool beats(float value, float most) { return (value > most) | (value != value); }
};

// The bits of positive bf16 numbers are in order as integers; the negative ones are less, as ReLU wants, but for NaN.
struct BFloat16 {
    using Value = int16_t;
    using Place = int16_t;
    static int16_t read(int16_t value) { return uint16_t(value) > 0xff80 ? 0x7fff : value; }
    static bool beats(int16_t value, int16_t most) { return value > most; }
};

struct Shape {
    long images, height, width, channels;
    // where the two rows of maps begin that make a row of the output
    long above(long row) const { return (row / (height / 2) * height + row % (height / 2) * 2) * width * channels; }
};

template <class Type, int LANES, bool PLACES>
void forward(const typename Type::Value *maps, typename Type::Value *output, uint8_t *places, Shape shape) {
    const long width = shape.width / 2, channels = shape.channels, across = shape.width * channels;
#pragma omp parallel for schedule(static)
    for (long row = 0; row < shape.images * (shape.height / 2); row++) {
        const auto *upper = maps + shape.above(row), *lower = upper + across;
        for (long x = row * width; x < (row + 1) * width; x++, upper += 2 * channels, lower += 2 * channels)
            for (long c = 0; c < channels; c += LANES) {
                typename Type::Value most[LANES];
                typename Type::Place place[LANES];
                for (int i = 0; i < LANES; i++) {
                    const typename Type::Value window[] = {
                        Type::read(upper[c + i]), Type::read(upper[channels + c + i]),
                        Type::read(lower[c + i]), Type::read(lower[channels + c + i])};
                    most[i] = 0, place[i] = NOWHERE;
                    for (int k = 0; k < 4; k++) {
                        const bool beats = Type::beats(window[k], most[i]);
                        most[i] = beats ? window[k] : most[i], place[i] = beats ? k : place[i];
                    }
                }
                for (int i = 0; i < LANES; i++) output[x * channels + c + i] = most[i];
                if (PLACES)
                    for (int i = 0; i < LANES; i++) places[x * channels + c + i] = uint8_t(place[i]);
            }
    }
}

template <class Type, int LANES>
void backward(const typename Type::Value *gradient, const uint8_t *places, typename Type::Value *back, Shape shape) {
    const long width = shape.width / 2, channels = shape.channels, across = shape.width * channels;
#pragma omp parallel for schedule(static)
    for (long row = 0; row < shape.images * (shape.height / 2); row++) {
        auto *upper = back + shape.above(row), *lower = upper + across;
        for (long x = row * width; x < (row + 1) * width; x++, upper += 2 * channels, lower += 2 * channels)
            for (long c = 0; c < channels; c += LANES) {
                typename Type::Value value[LANES];
                typename Type::Place place[LANES];
                for (int i = 0; i < LANES; i++)
                    value[i] = gradient[x * channels + c + i], place[i] = places[x * channels + c + i];
                for (int i = 0; i < LANES; i++) upper[c + i] = place[i] == 0 ? value[i] : 0;
                for (int i = 0; i < LANES; i++) upper[channels + c + i] = place[i] == 1 ? value[i] : 0;
                for (int i = 0; i < LANES; i++) lower[c + i] = place[i] == 2 ? value[i] : 0;
                for (int i = 0; i < LANES; i++) lower[channels + c + i] = place[i] == 3 ? value[i] : 0;
            }
    }
}

}  // namespace

#define EXPORT(NAME, TYPE)                                                                                   \
    extern "C" void NAME##_forward(                                                                          \
        const TYPE::Value *maps, TYPE::Value *output, uint8_t *places, long n, long h, long w, long c) {     \
        const auto call = places ? c % 16 == 0  ? forward<TYPE, 16, true>                                    \
                                   : c % 4 == 0 ? forward<TYPE, 4, true>                                     \
                                                : forward<TYPE, 1, true>                                     \
                                 : c % 16 == 0  ? forward<TYPE, 16, false>                                   \
                                   : c % 4 == 0 ? forward<TYPE, 4, false>                                    \
                                                : forward<TYPE, 1, false>;                                   \
        call(maps, output, places, {n, h, w, c});                                                            \
    }                                                                                                        \
    extern "C" void NAME##_backward(                                                                         \
        const TYPE::Value *gradient, const uint8_t *places, TYPE::Value *back, long n, long h, long w, long c) { \
        const auto call = c % 16 == 0 ? backward<TYPE, 16> : c % 4 == 0 ? backward<TYPE, 4> : backward<TYPE, 1>; \
        call(gradient, places, back, {n, h, w, c});                                                          \
    }

EXPORT(float32, Float32)
EXPORT(bfloat16, BFloat16)
