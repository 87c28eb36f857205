// Winograd's 3×3 convolution of tiles of 4×4 outputs, F(4×4, 3×3), over fp32 maps in channels_last: (N, H, W, C).
//
// A tile becomes 36 numbers for each channel, and the convolution 36 products of matrices, for some tiles at a time, so
// that what is transformed stays in the cache. The maps are padded with zeros, one row or column on each side.
// Channels are taken PANEL at a time: what is transformed lies as (36, C / PANEL, tiles, PANEL), so that every product
// reads memory in order.
// Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016.
#include <algorithm>
#include <cstring>
#include <omp.h>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, TILES_AT_ONCE = 12, CHANNELS_AT_ONCE = 16;  // whose sums fill the registers
#else
constexpr int LANES = 8, TILES_AT_ONCE = 6, CHANNELS_AT_ONCE = 4;
#endif
constexpr int PANEL = 16, TILE = 4, SIDE = TILE + 2, NUMBERS = SIDE * SIDE;
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

Vector load(const float *from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

void store(float *to, Vector value) { std::memcpy(to, &value, sizeof value); }

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

struct Maps {
    const float *at;
    long images, height, width, channels;
    long down() const { return (height + TILE - 1) / TILE; }
    long across() const { return (width + TILE - 1) / TILE; }
    long tiles() const { return images * down() * across(); }
    bool holds(long y, long x) const { return y >= 0 && y < height && x >= 0 && x < width; }
    long pixel(long image, long y, long x) const { return ((image * height + y) * width + x) * channels; }
};

struct Place {
    long image, top, left;
    Place(const Maps &maps, long tile)
        : image(tile / (maps.down() * maps.across())), top(tile / maps.across() % maps.down() * TILE),
          left(tile % maps.across() * TILE) {}
};

// One of the 36 matrices follows the other after so many numbers; the odd line keeps them apart in the cache.
long plane(long tiles, long channels) { return tiles * channels + PANEL; }

// Where a vector of a tile's channels lies within a matrix.
long spot(long tile, long c, long tiles) { return (c / PANEL * tiles + tile) * PANEL + c % PANEL; }

// Transforms SIZE×SIZE pixels of each tile, of which the first is FIRST beside its first output.
template <int SIZE, int FIRST, void (*DOWN)(const Vector *, Vector *), void (*ACROSS)(const Vector *, Vector *)>
void expand(const Maps &maps, long first, long count, long at, long tiles, float *out) {
    for (long tile = 0; tile < count; tile++) {
        const Place place(maps, first + tile);
        const long top = place.top + FIRST, left = place.left + FIRST;
        const bool inside = maps.holds(top, left) && maps.holds(top + SIZE - 1, left + SIZE - 1);
        for (long c = 0; c < maps.channels; c += LANES) {
            Vector found[NUMBERS], half[NUMBERS];
            for (int y = 0; y < SIZE; y++)
                for (int x = 0; x < SIZE; x++)
                    found[y * SIDE + x] = inside || maps.holds(top + y, left + x)
                                              ? load(maps.at + maps.pixel(place.image, top + y, left + x) + c)
                                              : Vector{};
            float *to = out + spot(at + tile, c, tiles);
            for (int x = 0; x < SIZE; x++) DOWN(found + x, half + x);
            for (int y = 0; y < SIDE; y++) ACROSS(half + y * SIDE, found + y * SIDE);
            for (int k = 0; k < NUMBERS; k++) store(to + k * plane(tiles, maps.channels), found[k]);
        }
    }
}

// Undoes it for the products and adds the bias.
void collapse(const float *products, const float *bias, const Maps &maps, long first, long count, long tiles, float *out) {
    for (long tile = 0; tile < count; tile++) {
        const Place place(maps, first + tile);
        const long down = std::min<long>(TILE, maps.height - place.top), across = std::min<long>(TILE, maps.width - place.left);
        for (long c = 0; c < maps.channels; c += LANES) {
            Vector found[NUMBERS], half[NUMBERS];
            const Vector more = bias ? load(bias + c) : Vector{};
            const float *from = products + spot(tile, c, tiles);
            for (int k = 0; k < NUMBERS; k++) found[k] = load(from + k * plane(tiles, maps.channels));
            for (int x = 0; x < SIDE; x++) to_output<SIDE>(found + x, half + x);
            for (int y = 0; y < TILE; y++) to_output<1>(half + y * SIDE, found + y * SIDE);
            for (int y = 0; y < down; y++)
                for (int x = 0; x < across; x++)
                    store(out + maps.pixel(place.image, place.top + y, place.left + x) + c, found[y * SIDE + x] + more);
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

}  // namespace

// `maps` (N, H, W, C), `weights` (36, K / PANEL, C, PANEL), `bias` (K,) or nothing → `out` (N, H, W, K).
// Each thread needs 36 · (`tiles` · (C + K) + 2 · PANEL) numbers of `scratch`; `tiles` is a multiple of TILES_AT_ONCE.
extern "C" void float32_forward(
    const float *maps, const float *weights, const float *bias, float *out, float *scratch, long tiles, long n, long h,
    long w, long c, long k) {
    const Maps input{maps, n, h, w, c}, output{out, n, h, w, k};
    const long all = input.tiles(), size = NUMBERS * plane(tiles, c);
#pragma omp parallel for schedule(static)
    for (long first = 0; first < all; first += tiles) {
        float *inputs = scratch + omp_get_thread_num() * (size + NUMBERS * plane(tiles, k)), *products = inputs + size;
        const long count = std::min(tiles, all - first);
        expand<SIDE, -1, of_input<SIDE>, of_input<1>>(input, first, count, 0, tiles, inputs);
        for (int t = 0; t < NUMBERS; t++)
            for (long j = 0; j < k; j += PANEL)
                for (long i = 0; i < count; i += TILES_AT_ONCE)
                    multiply<TILES_AT_ONCE, PANEL, false>(
                        inputs + t * plane(tiles, c) + i * PANEL, PANEL, tiles * PANEL, weights + (t * k + j) * c,
                        products + t * plane(tiles, k) + j * tiles + i * PANEL, c);
        collapse(products, bias, output, first, count, tiles, out);
    }
}

// `maps` (N, H, W, C) and the output's `gradient` (N, H, W, K) add to that of the weights, (36, K / PANEL, C, PANEL).
// `scratch` holds 36 · (`tiles` · (C + K) + 2 · PANEL) numbers.
extern "C" void float32_weights(
    const float *maps, const float *gradient, float *out, float *scratch, long tiles, long n, long h, long w, long c,
    long k) {
    const Maps input{maps, n, h, w, c}, output{gradient, n, h, w, k};
    const long all = input.tiles();
    float *inputs = scratch, *gradients = scratch + NUMBERS * plane(tiles, c);
#pragma omp parallel
    for (long first = 0; first < all; first += tiles) {
        const long count = std::min(tiles, all - first);
#pragma omp for schedule(static)
        for (long tile = 0; tile < count; tile++) {
            expand<SIDE, -1, of_input<SIDE>, of_input<1>>(input, first + tile, 1, tile, tiles, inputs);
            expand<TILE, 0, of_gradient<SIDE>, of_gradient<1>>(output, first + tile, 1, tile, tiles, gradients);
        }
#pragma omp for schedule(static)
        for (int t = 0; t < NUMBERS; t++)
            for (long j = 0; j < k; j += PANEL)
                for (long i = 0; i < c; i += CHANNELS_AT_ONCE)
                    multiply<CHANNELS_AT_ONCE, 1, true>(
                        inputs + t * plane(tiles, c) + spot(0, i, tiles), 1, PANEL,
                        gradients + t * plane(tiles, k) + j * tiles, out + (t * k + j) * c + i * PANEL, count);
    }
}
