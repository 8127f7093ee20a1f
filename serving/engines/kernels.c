/* What surrounds a product of whole numbers, and attention within texts of different lengths: loops that a library makes of many
   passes over memory, each in one. Rows are contiguous, in float32. `kernels.py` compiles this and says what may be passed; nothing
   here allocates, reads past what it is given, or keeps anything.

   Written in GCC's vectors, as long as the processor's own: longer ones are computed piece by piece, through memory. Sources: Cephes
   (S. L. Moshier) for the polynomial of exp; Abramowitz and Stegun 1964, 7.1.26, for erf. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
/* So many queries at once: with two vectors of keys for each, AVX2's sixteen registers hold them. */
enum { ROWS = 6 };
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

#define ALWAYS_INLINE __attribute__((always_inline)) static inline

/* Steps that eight bits have, and the one that stands for zero. What is all alike has no step of its own. */
static const float STEPS = 255.0f, MIDDLE = 128.0f, LEAST_STEP = 1e-12f;

ALWAYS_INLINE Floats load(const float *from) {
    Floats found;
    memcpy(&found, from, sizeof found);
    return found;
}

ALWAYS_INLINE void store(float *to, Floats values) { memcpy(to, &values, sizeof values); }

ALWAYS_INLINE Floats all(float value) { return value - (Floats){0}; }

ALWAYS_INLINE Floats larger(Floats one, Floats other) {
    /* The first, where it is no number. */
    Ints is_one = ~(one <= other);
    return (Floats)((is_one & (Ints)one) | (~is_one & (Ints)other));
}

/* Of numbers up to 0, to 1e-7 of the value; further down than float32 reaches, nearly nothing. */
ALWAYS_INLINE Floats exponential(Floats values) {
    /* Adding it rounds to a whole number. */
    const float rounding = 12582912.0f;
    values = larger(values, all(-87.0f));
    Floats powers = (values * 1.44269504f + rounding) - rounding;
    Floats rest = values - powers * 0.693359375f + powers * 2.12194440e-4f;
    Floats sum = 1.3981999507e-3f + rest * 1.9875691500e-4f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    Ints bits = (__builtin_convertvector(powers, Ints) + 127) << 23;
    return sum * (Floats)bits;
}

/* x times the share of a normal distribution below x. */
ALWAYS_INLINE Floats gelu(Floats values) {
    Ints is_negative = values < 0.0f;
    Floats size = (Floats)((Ints)values & 0x7fffffff) * 0.70710678f;
    Floats near = 1.0f / (1.0f + 0.3275911f * size);
    Floats tail = -1.453152027f + near * 1.061405429f;
    tail = 1.421413741f + near * tail;
    tail = -0.284496736f + near * tail;
    tail = 0.254829592f + near * tail;
    tail = 0.5f * near * tail * exponential(-size * size);
    Floats below = (Floats)((is_negative & (Ints)tail) | (~is_negative & (Ints)(1.0f - tail)));
    return values * below;
}

/* Rounds each row to eight bits, with a step and a zero of its own.
   values (rows, width), shrink (width) -> whole (rows, width), step (rows), constant (rows): what a whole number of 0 stands for. */
void quantise(const float *restrict values, const float *restrict shrink, long rows, long width, int8_t *restrict whole,
              float *restrict step, float *restrict constant) {
    for (long row = 0; row < rows; row++, values += width, whole += width) {
        float low = INFINITY, high = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : sum)
        for (long i = 0; i < width; i++) {
            float value = values[i] * shrink[i];
            low = value < low ? value : low;
            high = value > high ? value : high;
            sum += value;
        }
        float size = (high - low) / STEPS;
        size = size > LEAST_STEP ? size : LEAST_STEP;
        float inverse = 1.0f / size;
#pragma omp simd
        for (long i = 0; i < width; i++) whole[i] = (int8_t)(int32_t)nearbyintf((values[i] * shrink[i] - low) * inverse - MIDDLE);
        /* Comparing leaves out what is no number: the answer must not be one either. */
        step[row] = sum - sum == 0.0f ? size : NAN;
        constant[row] = low + MIDDLE * size;
    }
}

/* Turns products of whole numbers back: product (rows, width), of each row step and constant, of each column scale, sums and bias
   -> found (rows, width). */
void finish(const int32_t *restrict product, const float *restrict step, const float *restrict constant, const float *restrict scale,
            const float *restrict sums, const float *restrict bias, long rows, long width, long has_gelu, float *restrict found) {
    for (long row = 0; row < rows; row++, product += width, found += width) {
        float by = step[row], zero = constant[row];
#pragma omp simd
        for (long i = 0; i < width; i++) found[i] = (float)product[i] * (by * scale[i]) + (bias[i] + zero * sums[i]);
        if (!has_gelu) continue;
        long i = 0;
        for (; i + LANES <= width; i += LANES) store(found + i, gelu(load(found + i)));
        if (i < width) {
            float last[LANES] = {0};
            memcpy(last, found + i, (width - i) * sizeof(float));
            store(last, gelu(load(last)));
            memcpy(found + i, last, (width - i) * sizeof(float));
        }
    }
}

/* Turns LANES rows of so many numbers into columns. */
ALWAYS_INLINE void transpose(Floats *rows) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) {
        Ints low, high;
        for (int i = 0; i < LANES; i++) {
            low[i] = i & half ? LANES + i - half : i;
            high[i] = i & half ? LANES + i : i + half;
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & half)) {
                Floats one = rows[i], other = rows[i + half];
                rows[i] = __builtin_shuffle(one, other, low);
                rows[i + half] = __builtin_shuffle(one, other, high);
            }
    }
}

/* Products of ROWS queries with `wide` times LANES keys, over all columns. */
ALWAYS_INLINE void score(const float *const *queries, const float *keys, long columns, long room, const int wide, float *scores) {
    Floats sums[ROWS][2] = {0};
    for (long column = 0; column < columns; column++) {
        Floats one = load(keys + column * room), other = wide > 1 ? load(keys + column * room + LANES) : one;
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
            sums[row][0] += one * queries[row][column];
            if (wide > 1) sums[row][1] += other * queries[row][column];
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
        store(scores + row * room, sums[row][0]);
        if (wide > 1) store(scores + row * room + LANES, sums[row][1]);
    }
}

/* Turns scores into weights that do not sum to 1 yet, and returns 1 / their sum; both are no numbers where a score is none. */
ALWAYS_INLINE float weigh(float *scores, long tokens, long room) {
    for (long i = tokens; i < room; i++) scores[i] = -INFINITY;
    Floats largest = load(scores), sums = {0};
    for (long i = LANES; i < room; i += LANES) largest = larger(largest, load(scores + i));
    float most = largest[0], sum = 0.0f;
    for (int i = 1; i < LANES; i++) most = largest[i] > most ? largest[i] : most;
    for (long i = 0; i < room; i += LANES) {
        Floats weights = exponential(load(scores + i) - most);
        sums += weights;
        store(scores + i, weights);
    }
    for (int i = 0; i < LANES; i++) sum += sums[i];
    return 1.0f / sum;
}

/* Sums `wide` times LANES columns of all values, weighed, for ROWS queries. */
ALWAYS_INLINE void mix(const float *weights, const float *values, long tokens, long room, long columns, const int wide,
                       const float *inverse, long rows, long stride, float *found) {
    Floats sums[ROWS][2] = {0};
    for (long token = 0; token < tokens; token++) {
        Floats one = load(values + token * columns), other = wide > 1 ? load(values + token * columns + LANES) : one;
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
            sums[row][0] += one * weights[row * room + token];
            if (wide > 1) sums[row][1] += other * weights[row * room + token];
        }
    }
    for (long row = 0; row < rows; row++) {
        store(found + row * stride, sums[row][0] * inverse[row]);
        if (wide > 1) store(found + row * stride + LANES, sums[row][1] * inverse[row]);
    }
}

/* One text, one attention head. */
ALWAYS_INLINE void attend_head(const float *queries, const float *keys, const float *values, long tokens, long stride, const long columns,
                               float scale, float *scratch, float *found) {
    const long room = (tokens + LANES - 1) / LANES * LANES;
    float *turned = scratch, *copied = turned + room * columns, *scores = copied + room * columns;
    for (long token = 0; token < room; token += LANES)
        for (long column = 0; column < columns; column += LANES) {
            Floats block[LANES];
            for (int i = 0; i < LANES; i++) block[i] = token + i < tokens ? load(keys + (token + i) * stride + column) * scale : all(0.0f);
            transpose(block);
            for (int i = 0; i < LANES; i++) store(turned + (column + i) * room + token, block[i]);
        }
    for (long token = 0; token < tokens; token++) memcpy(copied + token * columns, values + token * stride, columns * sizeof(float));
    for (long first = 0; first < tokens; first += ROWS) {
        const long rows = tokens - first < ROWS ? tokens - first : ROWS;
        const float *asked[ROWS];
        float inverse[ROWS];
        /* Where fewer are left the last one is computed again, and not kept. */
        for (long row = 0; row < ROWS; row++) asked[row] = queries + (first + (row < rows ? row : rows - 1)) * stride;
        long at = 0;
        for (; at + 2 * LANES <= room; at += 2 * LANES) score(asked, turned + at, columns, room, 2, scores + at);
        if (at < room) score(asked, turned + at, columns, room, 1, scores + at);
        for (long row = 0; row < ROWS; row++) inverse[row] = weigh(scores + row * room, tokens, room);
        long column = 0;
        for (; column + 2 * LANES <= columns; column += 2 * LANES)
            mix(scores, copied + column, tokens, room, columns, 2, inverse, rows, stride, found + first * stride + column);
        if (column < columns) mix(scores, copied + column, tokens, room, columns, 1, inverse, rows, stride, found + first * stride + column);
    }
}

/* Attention within each text: queries, keys, values and found (tokens of all texts, heads, columns); a text's tokens are those from
   one of `begins` (texts + 1) to the next. Columns are a multiple of 16; scratch holds (2 * columns + ROWS) * tokens of the longest text,
   rounded up to 16. */
void attend(const float *queries, const float *keys, const float *values, const int32_t *begins, long texts, long heads, long columns,
            float scale, float *scratch, float *found) {
    const long stride = heads * columns;
    for (long text = 0; text < texts; text++)
        for (long head = 0; head < heads; head++) {
            const long at = begins[text] * stride + head * columns, tokens = begins[text + 1] - begins[text];
            /* The usual sizes are known to the compiler. */
            if (columns == 32)
                attend_head(queries + at, keys + at, values + at, tokens, stride, 32, scale, scratch, found + at);
            else if (columns == 64)
                attend_head(queries + at, keys + at, values + at, tokens, stride, 64, scale, scratch, found + at);
            else
                attend_head(queries + at, keys + at, values + at, tokens, stride, columns, scale, scratch, found + at);
        }
}
