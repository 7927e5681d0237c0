// One APOLLO step of float32 matrices of one shape on the CPU: what rayrec/optim/apollo_update.py does in torch's operations.
//
// A matrix (m, n) has channels along its larger dimension ("tall": rows, when m >= n; else columns). Each is read from memory
// once: norms of channels (and the projection on one row) bring the gradient into the caches, where the update finds it.
// Loops go down four distant parts of a matrix at once: one stream of addresses waits for memory, four keep it busy.

#include <cmath>
#include <cstdint>

namespace {

constexpr float kTiny = 1e-8f;      // keeps both quotients of norms finite
constexpr int64_t kColumns = 2048;  // of a wide matrix worked on at once: sums of four rows stay in the first cache

struct Settings {
    float weight1, beta2, weight2, eps;  // 1 - beta1, beta2, 1 - beta2: the differences as double gives them
    float norm_growth;  // 0: no limiter
    int32_t one_scale;  // of a matrix (Mini) instead of one a channel
};

struct Sums {  // of squares, by channel
    float *gradient, *adam, *projected;
};

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Squared norms of rows [first, last) and, with kProject, their products with the projection's only row.
template <bool kProject>
void read_tall(const float *g, const float *projection, float *low, float *squares, int64_t n, int64_t first, int64_t last) {
    const int64_t far = (last - first) / 4;
    int64_t i = first;
    for (; i < first + far; i++) {
        const float *a = g + i * n, *b = a + far * n, *c = b + far * n, *d = c + far * n;
        float pa = 0, pb = 0, pc = 0, pd = 0, sa = 0, sb = 0, sc = 0, sd = 0;
#pragma omp simd reduction(+ : pa, pb, pc, pd, sa, sb, sc, sd)
        for (int64_t j = 0; j < n; j++) {
            if (kProject) {
                const float q = projection[j];
                pa += a[j] * q, pb += b[j] * q, pc += c[j] * q, pd += d[j] * q;
            }
            sa += a[j] * a[j], sb += b[j] * b[j], sc += c[j] * c[j], sd += d[j] * d[j];
        }
        if (kProject) low[i] = pa, low[i + far] = pb, low[i + 2 * far] = pc, low[i + 3 * far] = pd;
        squares[i] = sa, squares[i + far] = sb, squares[i + 2 * far] = sc, squares[i + 3 * far] = sd;
    }
    for (i = first + 4 * far; i < last; i++) {
        const float *a = g + i * n;
        float pa = 0, sa = 0;
#pragma omp simd reduction(+ : pa, sa)
        for (int64_t j = 0; j < n; j++) {
            if (kProject) pa += a[j] * projection[j];
            sa += a[j] * a[j];
        }
        if (kProject) low[i] = pa;
        squares[i] = sa;
    }
}

// The same of columns [first, last).
template <bool kProject>
void read_wide(const float *g, const float *projection, float *low, float *squares, int64_t m, int64_t n, int64_t first, int64_t last) {
    const int64_t far = m / 4;
    for (int64_t start = first; start < last; start += kColumns) {
        const int64_t width = least(kColumns, last - start);
        float *sums = squares + start, *out = low + start;
        for (int64_t j = 0; j < width; j++) sums[j] = 0;
        if (kProject)
            for (int64_t j = 0; j < width; j++) out[j] = 0;
        for (int64_t i = 0; i < far; i++) {
            const float *a = g + i * n + start, *b = a + far * n, *c = b + far * n, *d = c + far * n;
            float pa = 0, pb = 0, pc = 0, pd = 0;
            if (kProject) pa = projection[i], pb = projection[i + far], pc = projection[i + 2 * far], pd = projection[i + 3 * far];
#pragma omp simd
            for (int64_t j = 0; j < width; j++) {
                if (kProject) out[j] += (a[j] * pa + b[j] * pb) + (c[j] * pc + d[j] * pd);
                sums[j] += (a[j] * a[j] + b[j] * b[j]) + (c[j] * c[j] + d[j] * d[j]);
            }
        }
        for (int64_t i = 4 * far; i < m; i++) {
            const float *a = g + i * n + start;
            const float pa = kProject ? projection[i] : 0;
#pragma omp simd
            for (int64_t j = 0; j < width; j++) {
                if (kProject) out[j] += a[j] * pa;
                sums[j] += a[j] * a[j];
            }
        }
    }
}

inline float adam_direction(float x, float *exp_avg, float *exp_avg_sq, const Settings &s) {
    const float first = *exp_avg + s.weight1 * (x - *exp_avg), second = s.beta2 * *exp_avg_sq + s.weight2 * x * x;
    *exp_avg = first, *exp_avg_sq = second;
    return first / (std::sqrt(second) + s.eps);
}

// Moments of channels [first, last), low is (channels, r), and squared norms of direction and projection by channel.
void moments_tall(
    const float *low, float *exp_avg, float *exp_avg_sq, Sums sums, int64_t r, int64_t first, int64_t last, const Settings s) {
    const int64_t far = (last - first) / 2;
    int64_t i = first;
    for (; i < first + far; i++) {
        const float *x = low + i * r, *y = x + far * r;
        float *mx = exp_avg + i * r, *my = mx + far * r, *vx = exp_avg_sq + i * r, *vy = vx + far * r;
        float ax = 0, ay = 0, px = 0, py = 0;
#pragma omp simd reduction(+ : ax, ay, px, py)
        for (int64_t j = 0; j < r; j++) {
            const float dx = adam_direction(x[j], mx + j, vx + j, s), dy = adam_direction(y[j], my + j, vy + j, s);
            ax += dx * dx, ay += dy * dy, px += x[j] * x[j], py += y[j] * y[j];
        }
        sums.adam[i] = ax, sums.adam[i + far] = ay, sums.projected[i] = px, sums.projected[i + far] = py;
    }
    for (i = first + 2 * far; i < last; i++) {
        float ax = 0, px = 0;
#pragma omp simd reduction(+ : ax, px)
        for (int64_t j = i * r; j < (i + 1) * r; j++) {
            const float d = adam_direction(low[j], exp_avg + j, exp_avg_sq + j, s);
            ax += d * d, px += low[j] * low[j];
        }
        sums.adam[i] = ax, sums.projected[i] = px;
    }
}

// The same, low is (r, n); also any shape at r = 1, where both layouts are one.
void moments_wide(
    const float *low, float *exp_avg, float *exp_avg_sq, Sums sums, int64_t r, int64_t n, int64_t first, int64_t last, const Settings s) {
    for (int64_t start = first; start < last; start += kColumns) {
        const int64_t width = least(kColumns, last - start);
        float *adam = sums.adam + start, *projected = sums.projected + start;
        for (int64_t j = 0; j < width; j++) adam[j] = projected[j] = 0;
        for (int64_t i = 0; i < r; i++) {
            const float *x = low + i * n + start;
            float *m = exp_avg + i * n + start, *v = exp_avg_sq + i * n + start;
#pragma omp simd
            for (int64_t j = 0; j < width; j++) {
                const float d = adam_direction(x[j], m + j, v + j, s);
                adam[j] += d * d, projected[j] += x[j] * x[j];
            }
        }
    }
}

// Turns squared norms into what the gradient's channels are multiplied by, in ``sums.adam``; limits the update's norm.
void coefficients(Sums sums, int64_t channels, float *norm, float size, const Settings &s) {
    if (s.one_scale) {
        double adam = 0, projected = 0;
        for (int64_t j = 0; j < channels; j++) adam += sums.adam[j], projected += sums.projected[j];
        const float scale = std::sqrt((float)adam) / (std::sqrt((float)projected) + kTiny);
        for (int64_t j = 0; j < channels; j++) sums.adam[j] = scale;
    } else {
        for (int64_t j = 0; j < channels; j++) sums.adam[j] = std::sqrt(sums.adam[j]) / (std::sqrt(sums.projected[j]) + kTiny);
    }
    if (s.norm_growth > 0) {
        double squares = 0;
        for (int64_t j = 0; j < channels; j++) {
            const float scaled = std::sqrt(sums.gradient[j]) * sums.adam[j];
            squares += (double)scaled * scaled;
        }
        const float update = (float)std::sqrt(squares);
        float factor = (*norm + kTiny) * s.norm_growth / update;
        if (factor > 1) factor = 1;  // NaN goes on, as in every optimizer
        if (update * factor > 0) *norm = update * factor;
        size *= factor;
    }
    for (int64_t j = 0; j < channels; j++) sums.adam[j] *= size;
}

inline float stepped(float p, float g, float coefficient, float decay) { return (p - decay * p) - coefficient * g; }

void write_tall(float *p, const float *g, const float *by, float decay, int64_t n, int64_t first, int64_t last) {
    const int64_t far = (last - first) / 4, skip = far * n;
    int64_t i = first;
    for (; i < first + far; i++) {
        float *a = p + i * n;
        const float *ga = g + i * n;
        const float ca = by[i], cb = by[i + far], cc = by[i + 2 * far], cd = by[i + 3 * far];
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            a[j] = stepped(a[j], ga[j], ca, decay);
            a[j + skip] = stepped(a[j + skip], ga[j + skip], cb, decay);
            a[j + 2 * skip] = stepped(a[j + 2 * skip], ga[j + 2 * skip], cc, decay);
            a[j + 3 * skip] = stepped(a[j + 3 * skip], ga[j + 3 * skip], cd, decay);
        }
    }
    for (i = first + 4 * far; i < last; i++) {
        const float c = by[i];
#pragma omp simd
        for (int64_t j = i * n; j < (i + 1) * n; j++) p[j] = stepped(p[j], g[j], c, decay);
    }
}

void write_wide(float *p, const float *g, const float *by, float decay, int64_t m, int64_t n, int64_t first, int64_t last) {
    const int64_t far = m / 4, skip = far * n;
    for (int64_t start = first; start < last; start += kColumns) {
        const int64_t width = least(kColumns, last - start);
        const float *c = by + start;
        for (int64_t i = 0; i < far; i++) {
            float *a = p + i * n + start;
            const float *ga = g + i * n + start;
#pragma omp simd
            for (int64_t j = 0; j < width; j++) {
                a[j] = stepped(a[j], ga[j], c[j], decay);
                a[j + skip] = stepped(a[j + skip], ga[j + skip], c[j], decay);
                a[j + 2 * skip] = stepped(a[j + 2 * skip], ga[j + 2 * skip], c[j], decay);
                a[j + 3 * skip] = stepped(a[j + 3 * skip], ga[j + 3 * skip], c[j], decay);
            }
        }
        for (int64_t i = 4 * far; i < m; i++) {
            float *a = p + i * n + start;
            const float *ga = g + i * n + start;
#pragma omp simd
            for (int64_t j = 0; j < width; j++) a[j] = stepped(a[j], ga[j], c[j], decay);
        }
    }
}

struct Matrix {
    int64_t m, n, r;
    float *param;
    const float *gradient, *projection;  // of one row, or null: ``low`` holds the products already
    float *low, *exp_avg, *exp_avg_sq;
    Sums sums;

    bool tall() const { return m >= n; }
    int64_t channels() const { return tall() ? m : n; }

    void read(int64_t first, int64_t last, const Settings &s) const {
        if (projection) {
            if (tall()) read_tall<true>(gradient, projection, low, sums.gradient, n, first, last);
            else read_wide<true>(gradient, projection, low, sums.gradient, m, n, first, last);
        } else if (s.norm_growth > 0) {
            if (tall()) read_tall<false>(gradient, projection, low, sums.gradient, n, first, last);
            else read_wide<false>(gradient, projection, low, sums.gradient, m, n, first, last);
        }
        if (tall() && r > 1) moments_tall(low, exp_avg, exp_avg_sq, sums, r, first, last, s);
        else moments_wide(low, exp_avg, exp_avg_sq, sums, r, channels(), first, last, s);
    }

    void write(int64_t first, int64_t last, float decay) const {
        if (tall()) write_tall(param, gradient, sums.adam, decay, n, first, last);
        else write_wide(param, gradient, sums.adam, decay, m, n, first, last);
    }
};

}  // namespace

// k matrices (m, n) at rank r. params, gradients: k addresses each. projection: (1, min(m, n)), or null when lows hold the products.
// lows: k addresses of (m, r) when m >= n, else (r, n). exp_avg, exp_avg_sq: (k, *low). norms, sizes: (k,). decay: (), or null.
// scratch: (k, 3, max(m, n)).
extern "C" void apollo_step(
    int64_t k, int64_t m, int64_t n, int64_t r, float *const *params, const float *const *gradients, const float *projection,
    float *const *lows, float *exp_avg, float *exp_avg_sq, float *norms, const float *sizes, const float *decay, float *scratch,
    Settings settings, int32_t threads) {
    const int64_t channels = m >= n ? m : n, low = channels * r;
    const float decayed = decay ? *decay : 0;
    auto matrix = [&](int64_t x) {
        float *own = scratch + 3 * channels * x;
        return Matrix{m, n, r, params[x], gradients[x], projection, lows[x], exp_avg + low * x, exp_avg_sq + low * x,
                      Sums{own, own + channels, own + 2 * channels}};
    };
    // A matrix a thread, as long as there is one for each; the last ones by all threads.
    const int64_t alone = k - k % threads;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t x = 0; x < alone; x++) {
            const Matrix one = matrix(x);
            one.read(0, channels, settings);
            coefficients(one.sums, channels, norms + x, sizes[x], settings);
            one.write(0, channels, decayed);
        }
        for (int64_t x = alone; x < k; x++) {
            const Matrix one = matrix(x);
            const int64_t blocks = (channels + 15) / 16, part = 16;  // whole cache lines of columns
#pragma omp for schedule(static)
            for (int32_t t = 0; t < threads; t++)
                one.read(least(blocks * t / threads * part, channels), least(blocks * (t + 1) / threads * part, channels), settings);
#pragma omp single
            coefficients(one.sums, channels, norms + x, sizes[x], settings);
#pragma omp for schedule(static)
            for (int32_t t = 0; t < threads; t++)
                one.write(least(blocks * t / threads * part, channels), least(blocks * (t + 1) / threads * part, channels), decayed);
        }
    }
}
