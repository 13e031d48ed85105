/* A feature grid on a CPU, forward and backward: a part of cpu.c, which includes it.
 *
 * Every level has a tile of vectors of a few features; a point blends those at the 2^dim corners of its cell. Forward,
 * threads share the points, in chunks that go through one level after the other, so that a level's table stays in a
 * core's cache. Backward, a level's table belongs to one thread, or to a few that have a part of its vectors each, so
 * that no sum is written by two. The gradients of points that follow each other in one cell, as on a ray, are added up
 * before they go to its corners. Every sum has one order, whatever the number of threads.
 */

#define BLOCK 256       /* points whose corners are found at once, a multiple of LANES */
#define GRID_CHUNK 8192 /* points of a chunk */

typedef float two __attribute__((vector_size(8), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef float eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int64_t lvec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    int64_t points, dim, levels, features, threads;
    int64_t beside;       /* numbers of a point before its features */
    const Tile *tile;     /* [levels] */
    const int64_t *start; /* [levels]: the level's first vector in the table */
} Grid;

/* Of a block, [dim][BLOCK], and what find_block makes of it. */
typedef struct {
    float coords[4 * BLOCK], scaled[4 * BLOCK], fraction[4 * BLOCK], share[16 * BLOCK];
    uint32_t part[8 * BLOCK];
    int32_t entry[16 * BLOCK];
} Block;

/* Axis by axis; up to a whole number of vectors the last row comes again. */
static int64_t set_points(Block *block, const float *coords, int64_t dim, int64_t rows) {
    const int64_t filled = (rows + LANES - 1) / LANES * LANES;
    for (int64_t d = 0; d < dim; d++) {
        float *to = block->coords + d * BLOCK;
        for (int64_t r = 0; r < rows; r++) to[r] = coords[r * dim + d];
        for (int64_t r = rows; r < filled; r++) to[r] = to[rows - 1];
        for (int64_t r = filled; r < BLOCK; r++) to[r] = 0; /* scaled, and not used */
    }
    return filled;
}

/* The corners of the block's points, from their parts: the product over the axes, LANES points at once. */
static inline __attribute__((always_inline)) void combine(Block *block, int64_t dim, int hashed, int32_t mask,
                                                          int64_t rows) {
    for (int64_t r = 0; r < rows; r += LANES) {
        vec share[16] = {(vec){0} + 1};
        ivec entry[16] = {{0}};
#pragma GCC unroll 4
        for (int64_t d = 0; d < dim; d++) {
            const vec upper = *(const vec *)(block->fraction + d * BLOCK + r), lower = 1 - upper;
            const ivec low = *(const ivec *)(block->part + 2 * d * BLOCK + r);
            const ivec high = *(const ivec *)(block->part + (2 * d + 1) * BLOCK + r);
#pragma GCC unroll 8
            for (int64_t c = (1 << d) - 1; c >= 0; c--) {
                const vec before = share[c];
                const ivec start = entry[c];
                share[2 * c] = before * lower, share[2 * c + 1] = before * upper;
                if (hashed)
                    entry[2 * c] = start ^ low, entry[2 * c + 1] = start ^ high;
                else
                    entry[2 * c] = start + low, entry[2 * c + 1] = start + high;
            }
        }
#pragma GCC unroll 16
        for (int64_t c = 0; c < 1 << dim; c++) {
            *(vec *)(block->share + c * BLOCK + r) = share[c];
            *(ivec *)(block->entry + c * BLOCK + r) = entry[c] & mask;
        }
    }
}

/* What find_corners finds, of whole vectors of rows; grids blend linearly. */
static inline __attribute__((always_inline)) void find_block_of(Block *block, const Tile *tile, int64_t dim,
                                                                int64_t rows) {
    uint32_t step = 1;
    scale(block->coords, dim * BLOCK, tile->alpha, block->scaled);
    for (int64_t d = dim - 1; d >= 0; d--) {
        uint32_t *low = block->part + 2 * d * BLOCK;
        find_cells(tile, block->scaled + d * BLOCK, 1, rows, tile->hashed ? PRIMES[d] : step,
                   block->fraction + d * BLOCK, low, low + BLOCK);
        step *= (uint32_t)tile->tile_size;
    }
    if (tile->hashed)
        combine(block, dim, 1, (int32_t)tile->vectors - 1, rows);
    else
        combine(block, dim, 0, -1, rows);
}
static Corners find_block(Block *block, const Tile *tile, int64_t dim, int64_t rows) {
    switch (dim) {
    case 1: find_block_of(block, tile, 1, rows); break;
    case 2: find_block_of(block, tile, 2, rows); break;
    case 3: find_block_of(block, tile, 3, rows); break;
    default: find_block_of(block, tile, 4, rows);
    }
    return (Corners){block->entry, block->share, block->fraction, block->scaled, block->part, BLOCK};
}

/* NAME##_as with the number of features as a constant. */
#define BY_FEATURES(NAME, features, ...)                                                                               \
    switch (features) {                                                                                                \
    case 1: NAME##_as(1, __VA_ARGS__); break;                                                                          \
    case 2: NAME##_as(2, __VA_ARGS__); break;                                                                          \
    case 4: NAME##_as(4, __VA_ARGS__); break;                                                                          \
    case 8: NAME##_as(8, __VA_ARGS__); break;                                                                          \
    default: NAME##_as(features, __VA_ARGS__);                                                                         \
    }
/* BODY with `row` as the type of `features` numbers, or REST where there is no such type. */
#define WITH_ROWS(BODY, REST)                                                                                          \
    if (features == 2) {                                                                                               \
        typedef two row;                                                                                               \
        BODY                                                                                                           \
    } else if (features == 4) {                                                                                        \
        typedef four row;                                                                                              \
        BODY                                                                                                           \
    } else if (features == 8) {                                                                                        \
        typedef eight row;                                                                                             \
        BODY                                                                                                           \
    } else {                                                                                                           \
        REST                                                                                                           \
    }

/* out [rows, features], its rows `stride` apart: the blends of a level's table. */
static inline __attribute__((always_inline)) void blend_as(int64_t features, Corners at, int64_t corners, int64_t rows,
                                                           const float *table, float *out, int64_t stride) {
#if defined(__AVX512F__)
    if (features == 2) {
        const __m512i first = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
        const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        for (int64_t r = 0; r < rows; r += LANES) {
            vec sum[2] = {{0}, {0}};
            for (int64_t c = 0; c < corners; c++) {
                const __m512i entry = _mm512_loadu_si512(at.entry + c * BLOCK + r);
                const __m512 share = _mm512_loadu_ps(at.share + c * BLOCK + r);
                const __m512d low = _mm512_i32gather_pd(_mm512_castsi512_si256(entry), table, 8);
                const __m512d high = _mm512_i32gather_pd(_mm512_extracti64x4_epi64(entry, 1), table, 8);
                sum[0] += (vec)low * (vec)_mm512_permutexvar_ps(first, share);
                sum[1] += (vec)high * (vec)_mm512_permutexvar_ps(second, share);
            }
            const int64_t count = min(LANES, rows - r);
            for (int64_t lane = 0; lane < count; lane++)
                *(two *)(out + (r + lane) * stride) = ((const two *)sum)[lane];
        }
        return;
    }
#endif
    for (int64_t r = 0; r < rows; r++, out += stride) {
        WITH_ROWS(
            {
                row sum = {0};
                for (int64_t c = 0; c < corners; c++)
                    sum += at.share[c * BLOCK + r] * ((const row *)table)[at.entry[c * BLOCK + r]];
                *(row *)out = sum;
            },
            {
                for (int64_t f = 0; f < features; f++) {
                    float sum = 0;
                    for (int64_t c = 0; c < corners; c++)
                        sum += at.share[c * BLOCK + r] * table[at.entry[c * BLOCK + r] * features + f];
                    out[f] = sum;
                }
            })
    }
}
static void blend(int64_t features, Corners at, int64_t corners, int64_t rows, const float *table, float *out,
                  int64_t stride) {
    BY_FEATURES(blend, features, at, corners, rows, table, out, stride)
}

static int64_t grid_chunk(const Grid *grid) {
    const int64_t share = (grid->points + 4 * grid->threads - 1) / (4 * grid->threads);
    return min(GRID_CHUNK, (share + BLOCK - 1) / BLOCK * BLOCK);
}

/* out [points, beside + levels * features]: beside [points, beside], then the features at coords [points, dim], coarsest
 * level first, of table [vectors of all levels, features]. */
void loe_grid_forward(const Grid *grid, const float *coords, const float *beside, const float *table, float *out) {
    const int64_t size = grid_chunk(grid), features = grid->features, dim = grid->dim;
    const int64_t stride = grid->beside + grid->levels * features;
#pragma omp parallel for schedule(dynamic) num_threads(grid->threads)
    for (int64_t first = 0; first < grid->points; first += size) {
        const int64_t end = min(first + size, grid->points);
        Block block;
        for (int64_t r = first; r < end; r++)
            memcpy(out + r * stride, beside + r * grid->beside, grid->beside * sizeof(float));
        for (int64_t level = 0; level < grid->levels; level++)
            for (int64_t from = first; from < end; from += BLOCK) {
                const int64_t rows = min(BLOCK, end - from);
                const int64_t filled = set_points(&block, coords + from * dim, dim, rows);
                const Corners at = find_block(&block, grid->tile + level, dim, filled);
                blend(features, at, grid->tile[level].corners, rows, table + grid->start[level] * features,
                      out + from * stride + grid->beside + level * features, stride);
            }
    }
}

/* Whether each row is in the cell of the row before it; the first is not. */
static void find_runs(Corners at, int64_t dim, int64_t rows, int32_t *same) {
    for (int64_t r = 1; r < rows; r++) same[r] = 1;
    for (int64_t d = 0; d < dim; d++) {
        const uint32_t *low = at.part + 2 * d * BLOCK;
        for (int64_t r = 1; r < rows; r++) same[r] &= low[r] == low[r - 1];
    }
    same[0] = same[rows] = 0;
}

/* 1, 2, 4 or 8 numbers again and again in a vector; of more than its lanes, those of the `vector`-th of several. */
static inline __attribute__((always_inline)) vec repeated(int64_t features, const float *numbers, int64_t vector) {
    if (features >= LANES) return *(const vec *)(numbers + vector * LANES % features);
    if (features == 1) return (vec){0} + *numbers;
    if (features == 2) {
        int64_t pair;
        memcpy(&pair, numbers, sizeof pair);
        return (vec)((lvec){0} + pair);
    }
#if LANES == 16
    if (features == 8) return (vec)_mm512_broadcast_f64x4((__m256d)_mm256_loadu_ps(numbers));
    return (vec)_mm512_broadcast_f32x4(_mm_loadu_ps(numbers));
#elif LANES == 8
    return (vec)_mm256_broadcast_ps((const __m128 *)numbers);
#else
    return *(const vec *)numbers;
#endif
}

/* sums [vectors, features] += the shares of rows g, `stride` apart; of vectors from..from + count - 1 alone. The lanes
 * of a vector, or of several, are the features of the corners. */
static inline __attribute__((always_inline)) void scatter_as(int64_t features, int64_t dim, Corners at, int64_t rows,
                                                             const int32_t *same, const float *g, int64_t stride,
                                                             uint32_t from, uint32_t count, float *sums) {
    enum { MOST = 128 / LANES };
    const int64_t corners = 1 << dim, vectors = (corners * features + LANES - 1) / LANES;
    vec lower[4][MOST], sign[4][MOST]; /* a share is lower + sign * fraction along each axis */
    for (int64_t d = 0; d < dim; d++)
        for (int64_t lane = 0; lane < vectors * LANES; lane++) {
            const int64_t c = lane / features;
            const int upper = c >> (dim - 1 - d) & 1, used = c < corners;
            ((float *)lower[d])[lane] = used && !upper;
            ((float *)sign[d])[lane] = !used ? 0 : upper ? 1 : -1;
        }
    for (int64_t r = 0; r < rows;) {
        const int32_t *entry = at.entry + r;
        vec sum[MOST];
#pragma GCC unroll 16
        for (int64_t v = 0; v < vectors; v++) sum[v] = (vec){0};
        do {
#pragma GCC unroll 16
            for (int64_t v = 0; v < vectors; v++) {
                vec share = lower[0][v] + sign[0][v] * at.fraction[r];
#pragma GCC unroll 4
                for (int64_t d = 1; d < dim; d++) share *= lower[d][v] + sign[d][v] * at.fraction[d * BLOCK + r];
                sum[v] += share * repeated(features, g + r * stride, v);
            }
        } while (same[++r]);
        const float *part = (const float *)sum;
#pragma GCC unroll 16
        for (int64_t c = 0; c < corners; c++, part += features) {
            const uint32_t vector = (uint32_t)entry[c * BLOCK];
            if (vector - from >= count) continue;
            float *to = sums + (int64_t)vector * features;
            WITH_ROWS({ *(row *)to += *(const row *)part; },
                      {
                          for (int64_t f = 0; f < features; f++) to[f] += part[f];
                      })
        }
    }
}
/* The same of any number of features. */
static void scatter_any(int64_t features, int64_t dim, Corners at, int64_t rows, const int32_t *same, const float *g,
                        int64_t stride, uint32_t from, uint32_t count, float *sums) {
    for (int64_t r = 0, end; r < rows; r = end) {
        for (end = r + 1; same[end]; end++) {}
        for (int64_t c = 0; c < 1 << dim; c++) {
            const uint32_t vector = (uint32_t)at.entry[c * BLOCK + r];
            if (vector - from >= count) continue;
            for (int64_t f = 0; f < features; f++) {
                float sum = 0;
                for (int64_t k = r; k < end; k++) sum += at.share[c * BLOCK + k] * g[k * stride + f];
                sums[(int64_t)vector * features + f] += sum;
            }
        }
    }
}
static void scatter(int64_t features, int64_t dim, Corners at, int64_t rows, const int32_t *same, const float *g,
                    int64_t stride, uint32_t from, uint32_t count, float *sums) {
#define SCATTER(F, D)                                                                                                  \
    if (features == F && dim == D) {                                                                                   \
        scatter_as(F, D, at, rows, same, g, stride, from, count, sums);                                                \
        return;                                                                                                        \
    }
    SCATTER(2, 3) SCATTER(2, 2) SCATTER(2, 1) SCATTER(2, 4) SCATTER(1, 3) SCATTER(1, 2)
    SCATTER(4, 3) SCATTER(4, 2) SCATTER(8, 3) SCATTER(8, 2)
    scatter_any(features, dim, at, rows, same, g, stride, from, count, sums);
}

/* grad [rows, dim] += those of the shares of a level's table, from rows g, `stride` apart: along an axis, the difference
 * of what the corners on its two sides give. */
static inline __attribute__((always_inline)) void slopes_as(int64_t features, int64_t dim, Corners at, float alpha,
                                                            int64_t rows, const float *table, const float *g,
                                                            int64_t stride, float *grad) {
    for (int64_t r = 0; r < rows; r += LANES) {
        const int64_t count = min(LANES, rows - r);
        float product[16][LANES] = {{0}}; /* of a corner's vector and a point's g */
        for (int64_t c = 0; c < 1 << dim; c++)
            for (int64_t lane = 0; lane < count; lane++) {
                const float *vector = table + (int64_t)at.entry[c * BLOCK + r + lane] * features;
                const float *part = g + (r + lane) * stride;
                float sum = 0;
                for (int64_t f = 0; f < features; f++) sum += part[f] * vector[f];
                product[c][lane] = sum;
            }
        for (int64_t d = 0; d < dim; d++) {
            const int64_t bit = dim - 1 - d;
            vec slope = {0};
            for (int64_t c = 0; c < 1 << dim; c++) {
                if (c >> bit & 1) continue;
                vec share = (vec){0} + alpha;
                for (int64_t other = 0; other < dim; other++) {
                    const vec fraction = *(const vec *)(at.fraction + other * BLOCK + r);
                    if (other == d) continue;
                    if (c >> (dim - 1 - other) & 1)
                        share *= fraction;
                    else
                        share *= 1 - fraction;
                }
                slope += share * (*(const vec *)product[c | 1 << bit] - *(const vec *)product[c]);
            }
            for (int64_t lane = 0; lane < count; lane++) grad[(r + lane) * dim + d] += slope[lane];
        }
    }
}
static void add_grid_slopes(int64_t features, int64_t dim, Corners at, float alpha, int64_t rows, const float *table,
                            const float *g, int64_t stride, float *grad) {
    if (dim == 3 && features == 2)
        slopes_as(2, 3, at, alpha, rows, table, g, stride, grad);
    else if (dim == 2 && features == 2)
        slopes_as(2, 2, at, alpha, rows, table, g, stride, grad);
    else
        slopes_as(features, dim, at, alpha, rows, table, g, stride, grad);
}

/* Parts of a level's table, so that the threads have work to the end. */
static int64_t table_parts(const Grid *grid) {
    int64_t parts = 1;
    while (parts < 16) {
        const int64_t tasks = grid->levels * parts, rounds = (tasks + grid->threads - 1) / grid->threads;
        if (rounds * grid->threads * 3 <= tasks * 4) break; /* three quarters of the threads' time */
        parts *= 2;
    }
    return parts;
}

/* Gradients from grad [points, beside + levels * features], of whose rows the features' part counts: grad_coords
 * [points, dim] and grad_table, which are null where they are not wanted. */
void loe_grid_backward(const Grid *grid, const float *coords, const float *table, const float *grad, float *grad_coords,
                       float *grad_table) {
    const int64_t size = grid_chunk(grid), features = grid->features, dim = grid->dim;
    const int64_t stride = grid->beside + grid->levels * features, parts = table_parts(grid);
    grad += grid->beside;
    if (grad_table)
#pragma omp parallel for schedule(dynamic) num_threads(grid->threads)
        for (int64_t task = grid->levels * parts - 1; task >= 0; task--) { /* the largest tables first */
            const int64_t level = task / parts, vectors = grid->tile[level].vectors, part = (vectors + parts - 1) / parts;
            const int64_t from = min(vectors, task % parts * part), count = min(part, vectors - from);
            float *sums = grad_table + grid->start[level] * features;
            Block block;
            int32_t same[BLOCK + 1];
            memset(sums + from * features, 0, count * features * sizeof(float));
            if (count == 0) continue;
            for (int64_t first = 0; first < grid->points; first += BLOCK) {
                const int64_t rows = min(BLOCK, grid->points - first);
                const int64_t filled = set_points(&block, coords + first * dim, dim, rows);
                const Corners at = find_block(&block, grid->tile + level, dim, filled);
                find_runs(at, dim, rows, same);
                scatter(features, dim, at, rows, same, grad + first * stride + level * features,
                        stride, (uint32_t)from, (uint32_t)count, sums);
            }
        }
    if (grad_coords)
#pragma omp parallel for schedule(dynamic) num_threads(grid->threads)
        for (int64_t first = 0; first < grid->points; first += size) {
            const int64_t end = min(first + size, grid->points);
            Block block;
            memset(grad_coords + first * dim, 0, (end - first) * dim * sizeof(float));
            for (int64_t level = 0; level < grid->levels; level++)
                for (int64_t from = first; from < end; from += BLOCK) {
                    const int64_t rows = min(BLOCK, end - from);
                    const int64_t filled = set_points(&block, coords + from * dim, dim, rows);
                    const Corners at = find_block(&block, grid->tile + level, dim, filled);
                    add_grid_slopes(features, dim, at, grid->tile[level].alpha, rows, table + grid->start[level] * features,
                                    grad + from * stride + level * features, stride, grad_coords + from * dim);
                }
        }
}
