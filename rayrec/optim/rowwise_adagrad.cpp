// One step of row-wise Adagrad of a float32 table on the CPU: what rayrec/optim/rowwise_adagrad.py does in torch's operations.
//
// Rows lie far apart, so that memory's latency is what a step waits for: rows to come are fetched ahead, and each is read once.

#include <cmath>
#include <cstdint>

namespace {

constexpr int64_t kAhead = 12;  // rows; enough to hide a read from memory, few enough to stay in the first cache
constexpr int64_t kLine = 16;   // floats

}  // namespace

// n rows, each once; gradients: (n, d); table: (V, d); sums: (V,).
extern "C" void rowwise_adagrad_step(
    int64_t n, int64_t d, const int64_t *rows, const float *gradients, float *table, float *sums, float lr, float weight_decay,
    float eps, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        if (i + kAhead < n) {
            const int64_t next = rows[i + kAhead];
            for (int64_t j = 0; j < d; j += kLine) __builtin_prefetch(table + next * d + j, 1);
            __builtin_prefetch(sums + next, 1);
        }
        const float *g = gradients + i * d;
        float *row = table + rows[i] * d, squares = 0;
        int64_t zeros = 0;
        while (zeros < d && g[zeros] == 0) zeros++;
        if (zeros == d) continue;  // looked up and without a gradient: it does not decay either
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < d; j++) {
            const float whole = weight_decay ? g[j] + weight_decay * row[j] : g[j];  // else 0 * inf is NaN
            squares += whole * whole;
        }
        const float sum = sums[rows[i]] + squares / (float)d;
        sums[rows[i]] = sum;
        const float size = lr / (std::sqrt(sum) + eps);
#pragma omp simd
        for (int64_t j = 0; j < d; j++) row[j] -= size * (weight_decay ? g[j] + weight_decay * row[j] : g[j]);
    }
}
