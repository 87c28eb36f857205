// The weights of Winograd's convolution, F(4×4, 3×3): from 3×3 numbers to 36, and back for their gradient.
//
// K output and C input channels. Each of the 36 matrices lies as (K / PANEL, C, PANEL), as winograd.cpp multiplies it, and
// an odd line follows it, which keeps them apart in the cache.
#include <cstring>

namespace {

constexpr int PANEL = 16, SIDE = 6, SIZE = 3;
typedef float Vector __attribute__((vector_size(PANEL * sizeof(float))));

// Each transform takes every STEP-th value, so that it does rows and columns alike.
template <int STEP> void of_weights(const Vector *g, Vector *t) {
    const Vector outer = g[0] + g[2 * STEP], far = g[0] / 24 + g[2 * STEP] / 6, middle = g[STEP] / 12;
    t[0] = g[0] / 4, t[STEP] = (outer + g[STEP]) / -6, t[2 * STEP] = (outer - g[STEP]) / -6;
    t[3 * STEP] = far + middle, t[4 * STEP] = far - middle, t[5 * STEP] = g[2 * STEP];
}

template <int STEP> void to_weights(const Vector *t, Vector *g) {
    const Vector near = (t[STEP] + t[2 * STEP]) / -6, far = t[3 * STEP] + t[4 * STEP];
    const Vector first = t[0] / 4 + near + far / 24, last = near + far / 6 + t[5 * STEP];
    const Vector middle = (t[2 * STEP] - t[STEP]) / 6 + (t[3 * STEP] - t[4 * STEP]) / 12;
    g[0] = first, g[STEP] = middle, g[2 * STEP] = last;
}

// Calls `work(k, c, at)` for the PANEL numbers that begin at `at` in each of the 36 matrices.
template <class Work> void each(long c_count, long k_count, Work work) {
#pragma omp parallel for schedule(static)
    for (long k = 0; k < k_count; k += PANEL)
        for (long c = 0; c < c_count; c++) work(k, c, k * c_count + c * PANEL);
}

}  // namespace

// `weights` are (K, C, 3, 3), with a step from each number to the next along each dimension, which may be negative.
extern "C" void float32_forward(
    const float *weights, float *out, long step_k, long step_c, long step_y, long step_x, long c_count, long k_count) {
    each(c_count, k_count, [=](long k, long c, long at) {
        Vector found[SIDE * SIDE], half[SIDE * SIDE];
        for (int y = 0; y < SIZE; y++)
            for (int x = 0; x < SIZE; x++)
                for (int i = 0; i < PANEL; i++)
                    found[y * SIDE + x][i] = weights[(k + i) * step_k + c * step_c + y * step_y + x * step_x];
        for (int x = 0; x < SIZE; x++) of_weights<SIDE>(found + x, half + x);
        for (int y = 0; y < SIDE; y++) of_weights<1>(half + y * SIDE, found + y * SIDE);
        for (int t = 0; t < SIDE * SIDE; t++) std::memcpy(out + t * (k_count * c_count + PANEL) + at, found + t, sizeof(Vector));
    });
}

extern "C" void float32_backward(
    const float *sums, float *out, long step_k, long step_c, long step_y, long step_x, long c_count, long k_count) {
    each(c_count, k_count, [=](long k, long c, long at) {
        Vector found[SIDE * SIDE], half[SIDE * SIDE];
        for (int t = 0; t < SIDE * SIDE; t++) std::memcpy(found + t, sums + t * (k_count * c_count + PANEL) + at, sizeof(Vector));
        for (int x = 0; x < SIDE; x++) to_weights<SIDE>(found + x, half + x);
        for (int y = 0; y < SIZE; y++) to_weights<1>(half + y * SIDE, found + y * SIDE);
        for (int y = 0; y < SIZE; y++)
            for (int x = 0; x < SIZE; x++)
                for (int i = 0; i < PANEL; i++)
                    out[(k + i) * step_k + c * step_c + y * step_y + x * step_x] = found[y * SIDE + x][i];
    });
}
