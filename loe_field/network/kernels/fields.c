/* Many small networks of one shape, in fp32: a part of cpu.c.
 *
 * Fields are what threads share out: one takes a whole field, forward and backward, so that its weights, activations and
 * sums stay in its cache and no thread waits for another. The rows of a level lie in memory in the order of its experts,
 * each expert's filled up to a multiple of FILL; every level writes its result in the order of the next. Where all
 * fields have the same points these orders are found once for all of them. The backward pass computes a chunk's forward
 * pass itself, and keeps sine and cosine of it in the cache: between two calls nothing is kept.
 */

#define FILL 8 /* rows of a block of a product, and what an expert's rows are filled up to */
#define GROUPED 128 /* rows whose products are added up at once: sums of sums round less */

typedef struct {
    Network net; /* weight and bias with a first axis of fields; half is 0 */
    int64_t fields, own_points, own_x; /* whether each field has points, and encoded points, of its own */
} Fields;

/* How the rows of a chunk lie at a level. */
typedef struct {
    int32_t *row;   /* [slots]: the row in every slot that holds one */
    int32_t *next;  /* [slots]: the slot of that row at the next level; of the last level the slot itself */
    int32_t *start, *count; /* [experts]: the slots of an expert */
    int32_t *entry; /* [corners][slots]: the vectors of the bias tile that a slot blends, and their shares */
    float *share;
} Order;

static int64_t lanes(int64_t n) { return (n + LANES - 1) / LANES * LANES; }
static int64_t field_widest(const Network *net) {
    return max(lanes(net->width), max(lanes(net->in_features), lanes(net->out_features)));
}
static int64_t field_chunk(const Network *net) { return max(1, min(net->points, max(256, 64 * net->most_experts))); }
static int64_t field_slots(const Network *net) { return field_chunk(net) + FILL * net->most_experts; }

/* ---- orders ---- */

static int64_t order_size(const Network *net, int64_t level) {
    return (2 + 2 * corners(net, level)) * field_slots(net) + 2 * net->most_experts;
}
static int64_t orders_size(const Network *net) {
    int64_t size = 0;
    for (int64_t level = 0; level < net->levels; level++) size += order_size(net, level);
    return size;
}
static Order order_at(const Network *net, int64_t level, float *room) {
    const int64_t slots = field_slots(net);
    for (int64_t i = 0; i < level; i++) room += order_size(net, i);
    int32_t *row = (int32_t *)room, *start = row + 2 * slots, *entry = start + 2 * net->most_experts;
    return (Order){row, row + slots, start, start + net->most_experts, entry,
                   (float *)(entry + corners(net, level) * slots)};
}
static int64_t order_room(const Network *net) { /* to find orders in */
    return (2 + net->dim) * field_chunk(net) + net->most_experts +
           (net->any_tile ? (2 * (1 << net->dim) + 4 * net->dim) * field_chunk(net) : 0);
}
/* The orders of all levels for the rows at coords [rows, dim]. */
static void find_orders(const Network *net, const float *coords, int64_t rows, float *orders, float *room) {
    const int64_t size = field_chunk(net), slots = field_slots(net);
    int32_t *slot = (int32_t *)room, *place = slot + size;
    float *scaled = (float *)(place + net->most_experts);
    uint16_t *index = (uint16_t *)(scaled + net->dim * size);
    float *rest = (float *)index + size;
    for (int64_t level = net->levels - 1; level >= 0; level--) {
        const Order order = order_at(net, level, orders);
        const int64_t count = experts(net, level);
        expert_index(net, level, coords, rows, scaled, index);
        memset(order.count, 0, count * sizeof(int32_t));
        for (int64_t r = 0; r < rows; r++) order.count[index[r]]++;
        int32_t at = 0;
        for (int64_t e = 0; e < count; e++) {
            order.start[e] = place[e] = at;
            at += (order.count[e] + FILL - 1) / FILL * FILL;
        }
        for (int64_t r = 0; r < rows; r++) {
            const int32_t here = place[index[r]]++;
            order.row[here] = (int32_t)r;
            order.next[here] = level == net->levels - 1 ? here : slot[r];
            slot[r] = here;
        }
        if (!corners(net, level)) continue;
        const Tile *tile = net->bias_tile + level;
        const int64_t most = (1 << net->dim) * size;
        float *share = rest + most, *fraction = share + most, *shifted = fraction + net->dim * size;
        const Corners corner = {(int32_t *)rest, share, fraction, shifted, (uint32_t *)(shifted + net->dim * size), size};
        find_corners(tile, net->dim, coords, rows, corner);
        for (int64_t c = 0; c < tile->corners; c++)
            for (int64_t r = 0; r < rows; r++) {
                order.entry[c * slots + slot[r]] = corner.entry[c * size + r];
                order.share[c * slots + slot[r]] = corner.share[c * size + r];
            }
    }
}
/* Rows x [rows, in] in the slots of the first level, filled up with zeros. */
static void lay_out(const Network *net, const Order order, const float *x, float *to) {
    const int64_t in = net->in_features, columns = lanes(in);
    for (int64_t e = 0; e < experts(net, 0); e++)
        for (int64_t s = order.start[e]; s < order.start[e] + order.count[e]; s++) {
            for (int64_t i = 0; i < in; i++) to[s * columns + i] = x[order.row[s] * in + i];
            for (int64_t i = in; i < columns; i++) to[s * columns + i] = 0;
        }
}

/* ---- products of rows that lie side by side ---- */

static inline __attribute__((always_inline)) void row_block(int rows, int vecs, const float *a, int64_t stride,
                                                            int64_t depth, const float *b, int64_t columns,
                                                            const float *bias, float *out) {
    vec sum[FILL][VECS];
#pragma GCC unroll 8
    for (int v = 0; v < vecs; v++) {
        const vec first = bias ? *(const vec *)(bias + v * LANES) : (vec){0};
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) sum[r][v] = first;
    }
    for (int64_t k = 0; k < depth; k++) {
        vec right[VECS];
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) right[v] = *(const vec *)(b + k * columns + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
#pragma GCC unroll 8
            for (int v = 0; v < vecs; v++) sum[r][v] += a[r * stride + k] * right[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) *(vec *)(out + r * columns + v * LANES) = sum[r][v];
    }
}
#define FITS(vecs) (LANES == 16 || LANES == 4 ? ((vecs) < 4 ? 8 : 4) : ((vecs) < 2 ? 8 : 4)) /* rows in registers */
static inline __attribute__((always_inline)) void column_block(int vecs, int64_t rows, const float *a, int64_t stride,
                                                               int64_t depth, const float *b, int64_t columns,
                                                               const float *bias, float *out) {
    for (int64_t r = 0; r < rows; r += FITS(vecs))
        row_block(FITS(vecs), vecs, a + r * stride, stride, depth, b, columns, bias, out + r * columns);
}
/* out [rows][columns] = a b + bias: rows, filled up to FILL, of `depth` numbers at a, b [depth][columns]; bias may be
 * null, columns is a multiple of LANES. */
static void multiply(int64_t rows, const float *a, int64_t stride, int64_t depth, const float *b, int64_t columns,
                     const float *bias, float *out) {
    rows = (rows + FILL - 1) / FILL * FILL;
    for (int64_t c = 0; c < columns;) {
        const int64_t vecs = min(VECS, (columns - c) / LANES);
        const float *first = bias ? bias + c : 0;
        switch (vecs) {
        case 1: column_block(1, rows, a, stride, depth, b + c, columns, first, out + c); break;
        case 2: column_block(2, rows, a, stride, depth, b + c, columns, first, out + c); break;
#if VECS > 2
        case 3: column_block(3, rows, a, stride, depth, b + c, columns, first, out + c); break;
        default: column_block(4, rows, a, stride, depth, b + c, columns, first, out + c);
#endif
        }
        c += vecs * LANES;
    }
}

static inline __attribute__((always_inline)) void sum_block(int outs, int vecs, int64_t rows, const float *g,
                                                            int64_t stride, const float *x, int64_t columns,
                                                            float *sums) {
    vec sum[16][VECS];
#pragma GCC unroll 16
    for (int o = 0; o < outs; o++) {
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) sum[o][v] = (vec){0};
    }
    for (int64_t r = 0; r < rows; r++) {
        vec right[VECS];
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) right[v] = *(const vec *)(x + r * columns + v * LANES);
#pragma GCC unroll 16
        for (int o = 0; o < outs; o++) {
#pragma GCC unroll 8
            for (int v = 0; v < vecs; v++) sum[o][v] += g[r * stride + o] * right[v];
        }
    }
#pragma GCC unroll 16
    for (int o = 0; o < outs; o++) {
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) *(vec *)(sums + o * columns + v * LANES) += sum[o][v];
    }
}
/* sums [out to OUT_ROWS][columns] += g^T x: g [rows][stride], of zeros behind `out`, and x [rows][columns]. */
static void add_products(int64_t all_rows, const float *g, int64_t stride, int64_t out, const float *x, int64_t columns,
                         float *sums) {
    for (int64_t first = 0; first < all_rows; first += GROUPED) {
        const int64_t rows = min(GROUPED, all_rows - first);
        for (int64_t c = 0; c < columns;) {
            const int64_t vecs = min(VECS, (columns - c) / LANES);
            for (int64_t o = 0; o < out;) {
                const float *gs = g + first * stride + o, *xs = x + first * columns + c;
                float *to = sums + o * columns + c;
                if (vecs == 1 && LANES != 8 && out - o > 8) {
                    sum_block(16, 1, rows, gs, stride, xs, columns, to);
                    o += 16;
                } else if (vecs == 1 && out - o > 4) {
                    sum_block(8, 1, rows, gs, stride, xs, columns, to);
                    o += 8;
                } else if (vecs == 1) {
                    sum_block(4, 1, rows, gs, stride, xs, columns, to);
                    o += 4;
#if VECS > 2
                } else if (vecs == 2 && out - o > 4) {
                    sum_block(8, 2, rows, gs, stride, xs, columns, to);
                    o += 8;
                } else if (vecs == 3 && out - o > 4) {
                    sum_block(8, 3, rows, gs, stride, xs, columns, to);
                    o += 8;
                } else if (vecs == 3) {
                    sum_block(4, 3, rows, gs, stride, xs, columns, to);
                    o += 4;
                } else if (vecs == 4) {
                    sum_block(4, 4, rows, gs, stride, xs, columns, to);
                    o += 4;
#endif
                } else {
                    sum_block(4, 2, rows, gs, stride, xs, columns, to);
                    o += 4;
                }
            }
            c += vecs * LANES;
        }
    }
}

/* ---- a field ---- */

/* Where a layer's padded parameters begin in a thread's room, and the sums of their gradients, which lie alike: matrices
 * [experts][in][lanes(out)] to multiply by, [experts][out][lanes(in)] for the way back, and vectors [..][lanes(out)]. */
static int64_t block_rows(int64_t n) { return (n + 15) / 16 * 16; }
static int64_t matrix_size(const Network *net, int64_t layer, int backward) {
    const int64_t in = inputs(net, layer), out = outputs(net, layer);
    return backward ? block_rows(out) * lanes(in) : in * lanes(out);
}
typedef struct {
    float *forward, *backward, *bias, *sums, *bias_sums;
} Layer;
static int64_t layer_size(const Network *net, int64_t layer) {
    return experts(net, layer) * (matrix_size(net, layer, 0) + 2 * matrix_size(net, layer, 1)) +
           2 * vectors(net, layer) * lanes(outputs(net, layer));
}
static Layer layer_at(const Network *net, int64_t layer, float *room) {
    for (int64_t i = 0; i < layer; i++) room += layer_size(net, i);
    float *backward = room + experts(net, layer) * matrix_size(net, layer, 0);
    float *bias = backward + experts(net, layer) * matrix_size(net, layer, 1);
    float *sums = bias + vectors(net, layer) * lanes(outputs(net, layer));
    return (Layer){room, backward, bias, sums, sums + experts(net, layer) * matrix_size(net, layer, 1)};
}
static int64_t layers_size(const Network *net) {
    int64_t size = 0;
    for (int64_t layer = 0; layer <= net->levels; layer++) size += layer_size(net, layer);
    return size;
}

/* Pads a layer's parameters of a field, and clears the sums. */
static void take_layer(const Network *net, int64_t layer, int64_t field, int backward, const Layer to) {
    const int64_t in = inputs(net, layer), out = outputs(net, layer), count = experts(net, layer);
    const int64_t columns = lanes(out), columns_back = lanes(in), tile = vectors(net, layer);
    const float *weight = net->weight[layer] + field * count * out * in, *bias = net->bias[layer] + field * tile * out;
    for (int64_t e = 0; e < count; e++) {
        float *matrix = to.forward + e * matrix_size(net, layer, 0);
        float *back = to.backward + e * matrix_size(net, layer, 1);
        const float *from = weight + e * out * in;
        for (int64_t i = 0; i < in; i++) {
            for (int64_t o = 0; o < out; o++) matrix[i * columns + o] = from[o * in + i];
            for (int64_t o = out; o < columns; o++) matrix[i * columns + o] = 0;
        }
        for (int64_t o = 0; o < out && backward; o++) {
            for (int64_t i = 0; i < in; i++) back[o * columns_back + i] = from[o * in + i];
            for (int64_t i = in; i < columns_back; i++) back[o * columns_back + i] = 0;
        }
    }
    for (int64_t k = 0; k < tile; k++) {
        for (int64_t o = 0; o < out; o++) to.bias[k * columns + o] = bias[k * out + o];
        for (int64_t o = out; o < columns; o++) to.bias[k * columns + o] = 0;
    }
    if (!backward) return;
    memset(to.sums, 0, count * matrix_size(net, layer, 1) * sizeof(float));
    memset(to.bias_sums, 0, tile * columns * sizeof(float));
}

/* Floats of the rows that a field's chunk goes through: encoded points, values and slopes of every level, two more. */
static int64_t rows_size(const Network *net) {
    return field_slots(net) * (lanes(net->in_features) + 2 * net->levels * lanes(net->width) + 2 * field_widest(net));
}
static int64_t field_room(const Fields *fields) {
    const Network *net = &fields->net;
    return layers_size(net) + rows_size(net) + (fields->own_points ? orders_size(net) + order_room(net) : 0);
}
static int64_t field_chunks(const Network *net) { return (net->points + field_chunk(net) - 1) / field_chunk(net); }
static int64_t shared_size(const Fields *fields) {
    const Network *net = &fields->net;
    const int64_t rows = fields->own_x ? 0 : field_slots(net) * lanes(net->in_features);
    return (fields->own_points ? 0 : orders_size(net)) + rows;
}

/* Floats that loe_fields needs to work in. */
int64_t loe_fields_workspace(const Fields *fields) {
    const Network *net = &fields->net;
    return field_chunks(net) * shared_size(fields) + net->threads * max(field_room(fields), order_room(net));
}

/* act of rows z [slots][columns] into the next level's slots of value, act' into slope, which may be null. */
static inline __attribute__((always_inline)) void activate_slots(Finish kind, float parameter, const Network *net,
                                                                 int64_t level, const Order order, const float *z,
                                                                 int64_t columns, float *value, float *slope) {
    ivec beyond = {0};
    for (int64_t e = 0; e < experts(net, level); e++)
        for (int64_t s = order.start[e]; s < order.start[e] + order.count[e]; s++)
            for (int64_t c = 0; c < columns; c += LANES) {
                vec v, d;
                activate(kind, parameter, *(const vec *)(z + s * columns + c), &v, slope ? &d : 0, &beyond);
                *(vec *)(value + order.next[s] * columns + c) = v;
                if (slope) *(vec *)(slope + s * columns + c) = d;
            }
    if (!any(beyond)) return;
    for (int64_t e = 0; e < experts(net, level); e++)
        for (int64_t s = order.start[e]; s < order.start[e] + order.count[e]; s++)
            activate_exactly(parameter, z + s * columns, columns, value + order.next[s] * columns,
                             slope ? slope + s * columns : 0);
}

/* The gradient of level's pre-activations g, in its slots, from that of its values, in the next level's: times slope.
 * Adds its rows up in sums, if there is one bias. */
static inline __attribute__((always_inline)) void pass_slopes(const Network *net, int64_t level, const Order order,
                                                              const float *grad, const float *slope,
                                                              int64_t columns, float *g, float *sums) {
    for (int64_t e = 0; e < experts(net, level); e++)
        for (int64_t s = order.start[e], end = s + order.count[e]; s < end; s += 16)
            for (int64_t c = 0; c < columns; c += LANES) {
                vec sum = {0};
                for (int64_t r = s; r < min(s + 16, end); r++) {
                    const vec v = *(const vec *)(grad + order.next[r] * columns + c) *
                                  *(const vec *)(slope + r * columns + c);
                    *(vec *)(g + r * columns + c) = v;
                    sum += v;
                }
                if (sums) *(vec *)(sums + c) += sum;
            }
}

/* Every field at its points.
 *
 * coords [1 or fields, points, dim] and x [1 or fields, points, in_features], as own_points and own_x say. One of out,
 * target and grad_out is there, each [fields, points, out_features]:
 * - out: it is written, and nothing else;
 * - target: loss [fields] becomes the mean of the squared errors, and gradients are those of the losses;
 * - grad_out: the gradient of out, from which the others follow.
 * Gradients: grad_x [fields, points, in_features] may be null, and so may grad_weight and grad_bias, [levels + 1]
 * pointers, both; where all are, there is a loss alone.
 */
void loe_fields(const Fields *fields, const float *coords, const float *x, float *out, const float *target, float *loss,
                const float *grad_out, float *grad_x, float *const *grad_weight, float *const *grad_bias,
                float *workspace) {
    const Network *net = &fields->net;
    const int64_t levels = net->levels, size = field_chunk(net), slots = field_slots(net), chunks = field_chunks(net);
    const int64_t in = net->in_features, first_columns = lanes(in), width = lanes(net->width);
    const int64_t channels = net->out_features, last_columns = lanes(channels), points = net->points;
    const int backward = grad_x || grad_weight;
    const float mean = 2.0f / (float)(points * channels);
    float *shared = workspace, *rooms = shared + chunks * shared_size(fields);
    const int64_t room_size = max(field_room(fields), order_room(net));
#pragma omp parallel num_threads(net->threads)
    {
        float *room = rooms + thread_number() * room_size;
        if (!fields->own_points) {
#pragma omp for schedule(static)
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                float *orders = shared + chunk * shared_size(fields);
                const int64_t first = chunk * size;
                find_orders(net, coords + first * net->dim, min(size, points - first), orders, room);
                if (!fields->own_x) lay_out(net, order_at(net, 0, orders), x + first * in, orders + orders_size(net));
            }
        }
        float *own_x = room + layers_size(net), *values = own_x + slots * first_columns;
        float *slopes = values + levels * slots * width, *one = slopes + levels * slots * width;
        float *two = one + slots * field_widest(net), *own_orders = two + slots * field_widest(net);
#pragma omp for schedule(dynamic)
        for (int64_t field = 0; field < fields->fields; field++) {
            for (int64_t layer = 0; layer <= levels; layer++)
                take_layer(net, layer, field, backward, layer_at(net, layer, room));
            double squares = 0;
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                const int64_t first = chunk * size, rows = min(size, points - first), at = field * points + first;
                float *orders = shared + chunk * shared_size(fields);
                if (fields->own_points) {
                    orders = own_orders;
                    find_orders(net, coords + at * net->dim, rows, orders, orders + orders_size(net));
                }
                const float *entry = orders + orders_size(net);
                if (fields->own_x) {
                    lay_out(net, order_at(net, 0, orders), x + at * in, own_x);
                    entry = own_x;
                }
                for (int64_t level = 0; level < levels; level++) {
                    const Order order = order_at(net, level, orders);
                    const Layer layer = layer_at(net, level, room);
                    const int64_t tiled = corners(net, level), stride = level ? width : first_columns;
                    const float *input = level ? values + (level - 1) * slots * width : entry;
                    for (int64_t e = 0; e < experts(net, level); e++)
                        multiply(order.count[e], input + order.start[e] * stride, stride, inputs(net, level),
                                 layer.forward + e * matrix_size(net, level, 0), width, tiled ? 0 : layer.bias,
                                 one + order.start[e] * width);
                    for (int64_t e = 0; e < experts(net, level) && tiled; e++)
                        for (int64_t s = order.start[e]; s < order.start[e] + order.count[e]; s++)
                            for (int64_t c = 0; c < tiled; c++) {
                                const float *vector = layer.bias + order.entry[c * slots + s] * width;
                                const float share = order.share[c * slots + s];
                                for (int64_t k = 0; k < width; k += LANES)
                                    *(vec *)(one + s * width + k) += share * *(const vec *)(vector + k);
                            }
                    float *value = values + level * slots * width;
                    float *slope = backward ? slopes + level * slots * width : 0;
                    /* With the rows' length known to the compiler it takes 0.85 of the time. */
                    const float parameter = (float)net->parameter;
                    if (net->activation == LEAKY)
                        activate_slots(LEAKY, parameter, net, level, order, one, width, value, slope);
                    else if (width == LANES)
                        activate_slots(SINE, parameter, net, level, order, one, LANES, value, slope);
                    else if (width == 2 * LANES)
                        activate_slots(SINE, parameter, net, level, order, one, 2 * LANES, value, slope);
                    else
                        activate_slots(SINE, parameter, net, level, order, one, width, value, slope);
                }
                const Order last = order_at(net, levels - 1, orders);
                const int64_t last_experts = experts(net, levels - 1);
                const Layer head = layer_at(net, levels, room);
                const float *input = values + (levels - 1) * slots * width;
                for (int64_t e = 0; e < last_experts; e++) {
                    const int64_t start = last.start[e], end = start + last.count[e];
                    if (target || out)
                        multiply(last.count[e], input + start * width, width, net->width, head.forward, last_columns,
                                 head.bias, one + start * last_columns);
                    for (int64_t s = start; s < end; s++) {
                        float *g = one + s * last_columns;
                        const int64_t place = (at + last.row[s]) * channels;
                        if (out)
                            for (int64_t o = 0; o < channels; o++) out[place + o] = g[o];
                        else if (grad_out) {
                            for (int64_t o = 0; o < channels; o++) g[o] = grad_out[place + o];
                            for (int64_t o = channels; o < last_columns; o++) g[o] = 0;
                        } else {
                            float square = 0;
                            for (int64_t o = 0; o < channels; o++) {
                                const float error = g[o] - target[place + o];
                                square += error * error;
                                g[o] = error * mean;
                            }
                            squares += square;
                        }
                    }
                }
                if (!backward) continue;
                for (int64_t e = 0; e < last_experts; e++) {
                    const int64_t start = last.start[e], count = last.count[e];
                    add_products(count, one + start * last_columns, last_columns, channels, input + start * width, width,
                                 head.sums);
                    add_rows(0, one + start * last_columns, count, last_columns, head.bias_sums);
                    multiply(count, one + start * last_columns, last_columns, channels, head.backward, width, 0,
                             two + start * width);
                }
                for (int64_t level = levels - 1; level >= 0; level--) {
                    const Order order = order_at(net, level, orders);
                    const Layer layer = layer_at(net, level, room);
                    const int64_t tiled = corners(net, level), stride = level ? width : first_columns;
                    const float *before = level ? values + (level - 1) * slots * width : entry;
                    float *slope = slopes + level * slots * width, *sums = tiled ? 0 : layer.bias_sums;
                    if (width == LANES)
                        pass_slopes(net, level, order, two, slope, LANES, one, sums);
                    else
                        pass_slopes(net, level, order, two, slope, width, one, sums);
                    for (int64_t e = 0; e < experts(net, level) && tiled; e++)
                        for (int64_t s = order.start[e]; s < order.start[e] + order.count[e]; s++)
                            for (int64_t c = 0; c < tiled; c++) {
                                float *vector = layer.bias_sums + order.entry[c * slots + s] * width;
                                const float share = order.share[c * slots + s];
                                for (int64_t k = 0; k < width; k += LANES)
                                    *(vec *)(vector + k) += share * *(const vec *)(one + s * width + k);
                            }
                    for (int64_t e = 0; e < experts(net, level); e++) {
                        const int64_t start = order.start[e];
                        if (grad_weight)
                            add_products(order.count[e], one + start * width, width, net->width, before + start * stride,
                                         stride, layer.sums + e * matrix_size(net, level, 1));
                        if (level || grad_x)
                            multiply(order.count[e], one + start * width, width, net->width,
                                     layer.backward + e * matrix_size(net, level, 1), stride, 0, two + start * stride);
                        for (int64_t s = start; s < start + order.count[e] && level == 0 && grad_x; s++)
                            memcpy(grad_x + (at + order.row[s]) * in, two + s * stride, in * sizeof(float));
                    }
                }
            }
            if (loss) loss[field] = (float)(squares / (double)(points * channels)); /* of no points: NaN */
            for (int64_t i = 0; i <= levels && grad_weight; i++) {
                const Layer layer = layer_at(net, i, room);
                const int64_t depth = inputs(net, i), outs = outputs(net, i), count = experts(net, i);
                float *to = grad_weight[i] + field * count * outs * depth;
                for (int64_t e = 0; e < count; e++)
                    for (int64_t o = 0; o < outs; o++, to += depth)
                        memcpy(to, layer.sums + e * matrix_size(net, i, 1) + o * lanes(depth), depth * sizeof(float));
                to = grad_bias[i] + field * vectors(net, i) * outs;
                for (int64_t k = 0; k < vectors(net, i); k++)
                    memcpy(to + k * outs, layer.bias_sums + k * lanes(outs), outs * sizeof(float));
            }
        }
    }
}
