// Winograd's 3×3 convolution of tiles of 4×4 outputs, F(4×4, 3×3), over fp32 maps in channels_last: (N, H, W, C), and
// what follows it: nothing, ReLU, or a 2×2 max-pool and ReLU as in maxpool.cpp.
//
// A tile becomes 36 numbers for each channel, and the convolution 36 products of matrices, for some tiles at a time, so
// that what is transformed stays in the cache. The maps are padded with zeros, one row or column on each side.
// Channels are taken PANEL at a time: what is transformed lies as (36, C / PANEL, tiles, PANEL), so that every product
// reads memory in order.
// Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <omp.h>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, TILES_AT_ONCE = 12, CHANNELS_AT_ONCE = 16;  // whose sums fill the registers
#else
constexpr int LANES = 8, TILES_AT_ONCE = 6, CHANNELS_AT_ONCE = 4;
#endif
constexpr int PANEL = 16, TILE = 4, SIDE = TILE + 2, NUMBERS = SIDE * SIDE;
constexpr int NOWHERE = 4;  // where ReLU gives zero, and so stops the gradient
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Places __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

template <class Type = Vector, class Value = float> Type load(const Value *from) {
    Type value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class Type, class Value> void store(Value *to, Type value) { std::memcpy(to, &value, sizeof value); }

// Each transform takes every STEP-th value, so that it does rows and columns alike.
template <int STEP> void of_input(const Vector *d, Vector *t) {
    const Vector a = d[4 * STEP] - 4 * d[2 * STEP], b = d[3 * STEP] - 4 * d[STEP];
    const Vector c = d[4 * STEP] - d[2 * STEP], e = d[3 * STEP] - d[STEP];
    t[0] = 4 * (d[0] - d[2 * STEP]) + c, t[STEP] = a + b, t[2 * STEP] = a - b;
    t[3 * STEP] = c + 2 * e, t[4 * STEP] = c - 2 * e, t[5 * STEP] = d[5 * STEP] - d[3 * STEP] - 4 * e;
}

template <int STEP> void of_gradient(const Vector *y, Vector *t) {
    const Vector even = y[0] + y[2 * STEP], odd = y[STEP] + y[3 * STEP];
    const Vector even2 = y[0] + 4 * y[2 * STEP], odd2 = 2 * (y[STEP] + 4 * y[3 * STEP]);
    t[0] = y[0], t[STEP] = even + odd, t[2 * STEP] = even - odd;
    t[3 * STEP] = even2 + odd2, t[4 * STEP] = even2 - odd2, t[5 * STEP] = y[3 * STEP];
}

template <int STEP> void to_output(const Vector *m, Vector *y) {
    const Vector s = m[STEP] + m[2 * STEP], d = m[STEP] - m[2 * STEP];
    const Vector u = m[3 * STEP] + m[4 * STEP], v = m[3 * STEP] - m[4 * STEP];
    y[0] = m[0] + s + u, y[STEP] = d + 2 * v, y[2 * STEP] = s + 4 * u, y[3 * STEP] = d + 8 * v + m[5 * STEP];
}

struct Shape {
    long images, height, width, channels;
    long down() const { return (height + TILE - 1) / TILE; }
    long across() const { return (width + TILE - 1) / TILE; }
    long tiles() const { return images * down() * across(); }
    long pixel(long image, long y, long x) const { return ((image * height + y) * width + x) * channels; }
};

struct Place {
    long image, top, left;
    Place(const Shape &shape, long tile)
        : image(tile / (shape.down() * shape.across())), top(tile / shape.across() % shape.down() * TILE),
          left(tile % shape.across() * TILE) {}
};

struct Maps {
    const float *maps;
    Shape shape;
    long height = shape.height, width = shape.width;  // beyond which there are zeros
    Vector at(long image, long y, long x, long c) const { return load(maps + shape.pixel(image, y, x) + c); }
};

// The gradient before ReLU, from that behind it and the output.
struct OfReLU {
    const float *gradient, *output;
    Shape shape;
    long height = shape.height, width = shape.width;
    Vector at(long image, long y, long x, long c) const {
        const long pixel = shape.pixel(image, y, x) + c;
        return load(output + pixel) <= 0 ? Vector{} : load(gradient + pixel);
    }
};

// The gradient before max-pool and ReLU, from that behind them and the places of the maxima.
struct OfPool {
    const float *gradient;
    const uint8_t *places;
    Shape shape, pooled{shape.images, shape.height / 2, shape.width / 2, shape.channels};
    long height = pooled.height * 2, width = pooled.width * 2;
    Vector at(long image, long y, long x, long c) const {
        const long pixel = pooled.pixel(image, y / 2, x / 2) + c;
        const Places found = __builtin_convertvector(load<Bytes>(places + pixel), Places);
        return found == int32_t(y % 2 * 2 + x % 2) ? load(gradient + pixel) : Vector{};
    }
};

// One of the 36 matrices follows the other after so many numbers; the odd line keeps them apart in the cache.
long plane(long tiles, long channels) { return tiles * channels + PANEL; }

// Where a vector of a tile's channels lies within a matrix.
long spot(long tile, long c, long tiles) { return (c / PANEL * tiles + tile) * PANEL + c % PANEL; }

// Transforms SIZE×SIZE pixels of each tile, of which the first is FIRST beside its first output.
template <int SIZE, int FIRST, void (*DOWN)(const Vector *, Vector *), void (*ACROSS)(const Vector *, Vector *), class Source>
void expand(const Source &source, long first, long count, long at, long tiles, float *out) {
    const long channels = source.shape.channels;
    for (long tile = 0; tile < count; tile++) {
        const Place place(source.shape, first + tile);
        const long top = place.top + FIRST, left = place.left + FIRST;
        const long from_y = std::max(0l, -top), to_y = std::min<long>(SIZE, source.height - top);
        const long from_x = std::max(0l, -left), to_x = std::min<long>(SIZE, source.width - left);
        const bool inside = !from_y && !from_x && to_y == SIZE && to_x == SIZE;
        for (long c = 0; c < channels; c += LANES) {
            Vector found[NUMBERS], half[NUMBERS];
            if (inside) {
                for (int y = 0; y < SIZE; y++)
                    for (int x = 0; x < SIZE; x++) found[y * SIDE + x] = source.at(place.image, top + y, left + x, c);
            } else {
                for (int k = 0; k < NUMBERS; k++) found[k] = Vector{};
                for (long y = from_y; y < to_y; y++)
                    for (long x = from_x; x < to_x; x++)
                        found[y * SIDE + x] = source.at(place.image, top + y, left + x, c);
            }
            float *to = out + spot(at + tile, c, tiles);
            for (int x = 0; x < SIZE; x++) DOWN(found + x, half + x);
            for (int y = 0; y < SIDE; y++) ACROSS(half + y * SIDE, found + y * SIDE);
            for (int k = 0; k < NUMBERS; k++) store(to + k * plane(tiles, channels), found[k]);
        }
    }
}

template <class Source> void expand_input(const Source &source, long first, long count, long at, long tiles, float *out) {
    expand<SIDE, -1, of_input<SIDE>, of_input<1>>(source, first, count, at, tiles, out);
}

struct Output {
    float *out;
    uint8_t *places;  // of a pool's maxima, if they are wanted
    const float *bias;
    Shape shape;
    bool relu, pool;

    void whole(const Place &place, long c, const Vector *found) const {
        for (long y = 0; y < std::min<long>(TILE, shape.height - place.top); y++)
            for (long x = 0; x < std::min<long>(TILE, shape.width - place.left); x++) {
                const Vector value = found[y * SIDE + x];
                store(out + shape.pixel(place.image, place.top + y, place.left + x) + c,
                      relu ? value < 0 ? Vector{} : value : value);
            }
    }

    void pooled(const Place &place, long c, const Vector *found) const {
        const Shape small{shape.images, shape.height / 2, shape.width / 2, shape.channels};
        for (long y = 0; y < 2 && place.top / 2 + y < small.height; y++)
            for (long x = 0; x < 2 && place.left / 2 + x < small.width; x++) {
                Vector most = {};
                Places where = Places{} + NOWHERE;
                for (int k = 0; k < 4; k++) {
                    const Vector value = found[(2 * y + k / 2) * SIDE + 2 * x + k % 2];
                    const Places beats = (value > most) | (value != value);
                    most = beats ? value : most, where = beats ? Places{} + k : where;
                }
                const long pixel = small.pixel(place.image, place.top / 2 + y, place.left / 2 + x) + c;
                store(out + pixel, most);
                if (places) store(places + pixel, __builtin_convertvector(where, Bytes));
            }
    }
};

// Undoes it for the products, adds the bias, and does what follows the convolution.
void collapse(const float *products, const Output &output, long first, long count, long tiles) {
    const long channels = output.shape.channels;
    for (long tile = 0; tile < count; tile++) {
        const Place place(output.shape, first + tile);
        for (long c = 0; c < channels; c += LANES) {
            Vector found[NUMBERS], half[NUMBERS];
            const Vector more = output.bias ? load(output.bias + c) : Vector{};
            const float *from = products + spot(tile, c, tiles);
            for (int k = 0; k < NUMBERS; k++) found[k] = load(from + k * plane(tiles, channels));
            for (int x = 0; x < SIDE; x++) to_output<SIDE>(found + x, half + x);
            for (int y = 0; y < TILE; y++) to_output<1>(half + y * SIDE, found + y * SIDE);
            for (int k = 0; k < TILE * SIDE; k++) found[k] += more;
            output.pool ? output.pooled(place, c, found) : output.whole(place, c, found);
        }
    }
}

// Multiplies ROWS rows, `row` apart, by a panel; of their columns, INNER follow each other, and then comes a `jump`.
template <int ROWS, int INNER, bool ADD>
void multiply(const float *left, long row, long jump, const float *right, float *out, long depth) {
    constexpr int VECTORS = PANEL / LANES;
    Vector sums[ROWS][VECTORS] = {};
    for (long k = 0; k < depth; k += INNER, left += jump)
        for (int inner = 0; inner < INNER; inner++, right += PANEL)
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < VECTORS; v++)
                    sums[r][v] += left[r * row + inner] * load(right + v * LANES);
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) {
            float *to = out + r * PANEL + v * LANES;
            store(to, ADD ? load(to) + sums[r][v] : sums[r][v]);
        }
}

template <class Source>
void convolve(const Source &source, const float *weights, const Output &output, float *scratch, long tiles) {
    const long c = source.shape.channels, k = output.shape.channels, all = source.shape.tiles();
    const long size = NUMBERS * plane(tiles, c);
#pragma omp parallel for schedule(static)
    for (long first = 0; first < all; first += tiles) {
        float *inputs = scratch + omp_get_thread_num() * (size + NUMBERS * plane(tiles, k)), *products = inputs + size;
        const long count = std::min(tiles, all - first);
        expand_input(source, first, count, 0, tiles, inputs);
        for (int t = 0; t < NUMBERS; t++)
            for (long j = 0; j < k; j += PANEL)
                for (long i = 0; i < count; i += TILES_AT_ONCE)
                    multiply<TILES_AT_ONCE, PANEL, false>(
                        inputs + t * plane(tiles, c) + i * PANEL, PANEL, tiles * PANEL, weights + t * plane(k, c) + j * c,
                        products + t * plane(tiles, k) + j * tiles + i * PANEL, c);
        collapse(products, output, first, count, tiles);
    }
}

// The sum of a tile's gradients is one of its 36 numbers, so the gradient of the bias costs next to nothing.
void of_bias(const float *gradients, float *bias, long count, long tiles, long channels) {
    for (long c = 0; c < channels; c += LANES) {
        Vector sum = {};
        for (long tile = 0; tile < count; tile++) sum += load(gradients + spot(tile, c, tiles));
        store(bias + c, load(bias + c) + sum);
    }
}

template <class Source>
void of_weights(const Maps &input, const Source &gradient, float *out, float *bias, float *scratch, long tiles) {
    const long c = input.shape.channels, k = gradient.shape.channels, all = input.shape.tiles();
    float *inputs = scratch, *gradients = scratch + NUMBERS * plane(tiles, c);
#pragma omp parallel
    for (long first = 0; first < all; first += tiles) {
        const long count = std::min(tiles, all - first);
#pragma omp for schedule(static)
        for (long tile = 0; tile < count; tile++) {
            expand_input(input, first + tile, 1, tile, tiles, inputs);
            expand<TILE, 0, of_gradient<SIDE>, of_gradient<1>>(gradient, first + tile, 1, tile, tiles, gradients);
        }
#pragma omp for schedule(static)
        for (int t = 0; t < NUMBERS; t++) {
            if (t == SIDE + 1) of_bias(gradients + t * plane(tiles, k), bias, count, tiles, k);
            for (long j = 0; j < k; j += PANEL)
                for (long i = 0; i < c; i += CHANNELS_AT_ONCE)
                    multiply<CHANNELS_AT_ONCE, 1, true>(
                        inputs + t * plane(tiles, c) + spot(0, i, tiles), 1, PANEL,
                        gradients + t * plane(tiles, k) + j * tiles, out + t * plane(k, c) + j * c + i * PANEL, count);
        }
    }
}

enum { NOTHING, RELU, POOL };  // what follows a convolution

template <class Work> void with_gradient(const float *gradient, const void *saved, long after, Shape shape, Work work) {
    if (after == POOL) work(OfPool{gradient, static_cast<const uint8_t *>(saved), shape});
    else if (after == RELU) work(OfReLU{gradient, static_cast<const float *>(saved), shape});
    else work(Maps{gradient, shape});
}

}  // namespace

// `maps` (N, H, W, C), `weights` of winograd_weights.cpp, `bias` (K,) or nothing → `out`, (N, H, W, K) or pooled, and
// there, if they are wanted, the `places` of the maxima.
// Each thread needs 36 · (`tiles` · (C + K) + 2 · PANEL) numbers of `scratch`; `tiles` is a multiple of TILES_AT_ONCE.
extern "C" void float32_forward(
    const float *maps, const float *weights, const float *bias, float *out, uint8_t *places, float *scratch, long after,
    long tiles, long n, long h, long w, long c, long k) {
    convolve(Maps{maps, {n, h, w, c}}, weights, {out, places, bias, {n, h, w, k}, after == RELU, after == POOL}, scratch, tiles);
}

// The output's `gradient`, with the output behind ReLU or the places of a pool's maxima as `saved`, and the `weights` of
// the convolution that goes back → the gradient of the maps, `out` (N, H, W, C).
extern "C" void float32_maps(
    const float *gradient, const void *saved, const float *weights, float *out, float *scratch, long after, long tiles,
    long n, long h, long w, long c, long k) {
    with_gradient(gradient, saved, after, {n, h, w, k}, [=](const auto &source) {
        convolve(source, weights, {out, nullptr, nullptr, {n, h, w, c}, false, false}, scratch, tiles);
    });
}

// The same and the input, `maps` (N, H, W, C), add to the gradients of the weights, `out`, laid out as they are, and of the
// `bias` (K,).
// `scratch` holds 36 · (`tiles` · (C + K) + 2 · PANEL) numbers.
extern "C" void float32_weights(
    const float *maps, const float *gradient, const void *saved, float *out, float *bias, float *scratch, long after,
    long tiles, long n, long h, long w, long c, long k) {
    with_gradient(gradient, saved, after, {n, h, w, k}, [=](const auto &source) {
        of_weights(Maps{maps, {n, h, w, c}}, source, out, bias, scratch, tiles);
    });
}
