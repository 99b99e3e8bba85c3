// Casts to FP8, see harness/fp8/kernels.py. All matrices are bf16 or FP8, row after row; rows and columns come in multiples of 4.
//
// A block takes a tile of ROWS x COLUMNS. A thread takes 4 x 4 values of it at a time: four values of a row are one word of
// FP8, and four words turned around are what the transposed matrix wants, a whole line of memory of them for each column.

typedef unsigned char byte;
typedef unsigned short half_word;
typedef unsigned int word;
typedef long long number;

constexpr int ROWS = 128, COLUMNS = 64, THREADS = 256, LANES = 32;
constexpr int ROW_QUADS = ROWS / 4, COLUMN_QUADS = COLUMNS / 4;
static_assert(ROW_QUADS == LANES, "a warp writes a column of a tile at once");

// What is written transposed, by column and row / 4; the odd pitch spreads it over the banks of shared memory.
typedef word Tile[COLUMNS][ROW_QUADS + 1];

struct Four {
    float of[4];
};

__device__ Four load(const half_word* values) {
    const uint2 two = *reinterpret_cast<const uint2*>(values);
    return {__uint_as_float(two.x << 16), __uint_as_float(two.x & 0xffff0000u), __uint_as_float(two.y << 16),
            __uint_as_float(two.y & 0xffff0000u)};
}

// Saturated; the first value in the lowest byte. WIDE: e5m2, otherwise e4m3.
template <bool WIDE>
__device__ word rounded(Four values, float scale) {
    const float a = values.of[0] * scale, b = values.of[1] * scale, c = values.of[2] * scale, d = values.of[3] * scale;
    half_word low, high;
    if (WIDE) {
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
    } else {
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
    }
    return low | static_cast<word>(high) << 16;
}

__device__ void store(byte* out, word four) {
    *reinterpret_cast<word*>(out) = four;
}

// Put four rows of four values at their place in a tile, by columns.
__device__ void turn(const word (&row)[4], Tile& tile, int row_quad, int column_quad) {
    const word first = __byte_perm(row[0], row[1], 0x5140), second = __byte_perm(row[2], row[3], 0x5140);
    const word third = __byte_perm(row[0], row[1], 0x7362), fourth = __byte_perm(row[2], row[3], 0x7362);
    tile[4 * column_quad + 0][row_quad] = __byte_perm(first, second, 0x5410);
    tile[4 * column_quad + 1][row_quad] = __byte_perm(first, second, 0x7632);
    tile[4 * column_quad + 2][row_quad] = __byte_perm(third, fourth, 0x5410);
    tile[4 * column_quad + 3][row_quad] = __byte_perm(third, fourth, 0x7632);
}

// Write the tile that begins at (row, column) of a matrix to its transposed one, [columns, rows].
__device__ void write(const Tile& tile, byte* transposed, number rows, number columns, number row, number column) {
    const int lane = threadIdx.x % LANES;
    if (row + 4 * lane >= rows) return;
    for (int line = threadIdx.x / LANES; line < COLUMNS && column + line < columns; line += THREADS / LANES)
        store(transposed + (column + line) * rows + row + 4 * lane, tile[line][lane]);
}

template <bool WIDE>
__device__ void cast_both(const half_word* x, const float* scale, byte* out, byte* transposed, number rows, number columns) {
    __shared__ Tile tile;
    const number top = static_cast<number>(blockIdx.y) * ROWS, left = static_cast<number>(blockIdx.x) * COLUMNS;
    const int column_quad = threadIdx.x % COLUMN_QUADS;
    const number column = left + 4 * column_quad;
    const float factor = *scale;
    for (int row_quad = threadIdx.x / COLUMN_QUADS; row_quad < ROW_QUADS; row_quad += THREADS / COLUMN_QUADS) {
        const number row = top + 4 * row_quad;
        if (row >= rows || column >= columns) continue;
        word quad[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) quad[i] = rounded<WIDE>(load(x + (row + i) * columns + column), factor);
#pragma unroll
        for (int i = 0; i < 4; ++i) store(out + (row + i) * columns + column, quad[i]);
        turn(quad, tile, row_quad, column_quad);
    }
    __syncthreads();
    write(tile, transposed, rows, columns, top, left);
}

extern "C" __global__ void __launch_bounds__(THREADS)
cast_both_value(const half_word* x, const float* scale, byte* out, byte* transposed, number rows, number columns) {
    cast_both<false>(x, scale, out, transposed, rows, columns);
}

extern "C" __global__ void __launch_bounds__(THREADS)
cast_both_gradient(const half_word* x, const float* scale, byte* out, byte* transposed, number rows, number columns) {
    cast_both<true>(x, scale, out, transposed, rows, columns);
}

__device__ float sigmoid(float x) {
    return __fdividef(1.0f, 1.0f + __expf(-x));
}

struct Gated {
    Four value, of_gate, of_up;
};

// silu(gate) * up, and the gradients of gate and up from that of this product.
__device__ Gated gated(Four gate, Four up, Four upstream) {
    Gated found;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float gate_sigmoid = sigmoid(gate.of[i]), activated = gate.of[i] * gate_sigmoid;
        found.value.of[i] = activated * up.of[i];
        found.of_up.of[i] = upstream.of[i] * activated;
        found.of_gate.of[i] = upstream.of[i] * up.of[i] * (gate_sigmoid * (1.0f + gate.of[i] * (1.0f - gate_sigmoid)));
    }
    return found;
}

// gate_up [rows, 2 x columns], gradient [rows, columns]; out like gate_up, transposed [2 x columns, rows],
// value_transposed [columns, rows].
extern "C" __global__ void __launch_bounds__(THREADS)
swiglu_backward_cast(const half_word* gate_up, const half_word* gradient, const float* gradient_scale,
                     const float* value_scale, byte* out, byte* transposed, byte* value_transposed, number rows,
                     number columns) {
    __shared__ Tile gates, ups, values;
    const number top = static_cast<number>(blockIdx.y) * ROWS, left = static_cast<number>(blockIdx.x) * COLUMNS;
    const int column_quad = threadIdx.x % COLUMN_QUADS;
    const number column = left + 4 * column_quad;
    const float of_gradient = *gradient_scale, of_value = *value_scale;
    for (int row_quad = threadIdx.x / COLUMN_QUADS; row_quad < ROW_QUADS; row_quad += THREADS / COLUMN_QUADS) {
        const number row = top + 4 * row_quad;
        if (row >= rows || column >= columns) continue;
        word gate_quad[4], up_quad[4], value_quad[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const half_word* gate = gate_up + (row + i) * 2 * columns + column;
            const Gated found = gated(load(gate), load(gate + columns), load(gradient + (row + i) * columns + column));
            gate_quad[i] = rounded<true>(found.of_gate, of_gradient);
            up_quad[i] = rounded<true>(found.of_up, of_gradient);
            value_quad[i] = rounded<false>(found.value, of_value);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            store(out + (row + i) * 2 * columns + column, gate_quad[i]);
            store(out + (row + i) * 2 * columns + columns + column, up_quad[i]);
        }
        turn(gate_quad, gates, row_quad, column_quad);
        turn(up_quad, ups, row_quad, column_quad);
        turn(value_quad, values, row_quad, column_quad);
    }
    __syncthreads();
    write(gates, transposed, rows, columns, top, left);
    write(ups, transposed + columns * rows, rows, columns, top, left);
    write(values, value_transposed, rows, columns, top, left);
}

// --- without turning: each thread has one quad of columns, and as many rows as it takes ---

extern "C" __global__ void __launch_bounds__(THREADS) cast(const float* x, const float* scale, byte* out, number count) {
    const float factor = *scale;
    const number step = static_cast<number>(gridDim.x) * THREADS * 4;
    for (number place = (static_cast<number>(blockIdx.x) * THREADS + threadIdx.x) * 4; place < count; place += step) {
        const float4 four = *reinterpret_cast<const float4*>(x + place);
        store(out + place, rounded<false>({four.x, four.y, four.z, four.w}, factor));
    }
}

__device__ number own_column() {
    return (static_cast<number>(blockIdx.y) * THREADS + threadIdx.x) * 4;
}

extern "C" __global__ void __launch_bounds__(THREADS)
swiglu_cast(const half_word* gate_up, const float* scale, byte* out, number rows, number columns) {
    const number column = own_column();
    const float factor = *scale;
    if (column >= columns) return;
    for (number row = blockIdx.x; row < rows; row += gridDim.x) {
        const half_word* gate = gate_up + row * 2 * columns + column;
        store(out + row * columns + column, rounded<false>(gated(load(gate), load(gate + columns), {}).value, factor));
    }
}

// The larger of `found` and the magnitudes. By their bits, which are ordered like the numbers; NaN comes out largest.
__device__ word larger(word found, Four values) {
#pragma unroll
    for (int i = 0; i < 4; ++i) found = max(found, __float_as_uint(fabsf(values.of[i])));
    return found;
}

// largest: a zero before.
__device__ void publish(word found, word* largest) {
    found = __reduce_max_sync(0xffffffffu, found);
    if (threadIdx.x % LANES == 0) atomicMax(largest, found);
}

extern "C" __global__ void __launch_bounds__(THREADS)
swiglu_largest(const half_word* gate_up, word* largest, number rows, number columns) {
    const number column = own_column();
    word found = 0;
    if (column < columns)
        for (number row = blockIdx.x; row < rows; row += gridDim.x) {
            const half_word* gate = gate_up + row * 2 * columns + column;
            found = larger(found, gated(load(gate), load(gate + columns), {}).value);
        }
    publish(found, largest);
}

extern "C" __global__ void __launch_bounds__(THREADS)
swiglu_backward_largest(const half_word* gate_up, const half_word* gradient, word* largest, number rows, number columns) {
    const number column = own_column();
    word found = 0;
    if (column < columns)
        for (number row = blockIdx.x; row < rows; row += gridDim.x) {
            const half_word* gate = gate_up + row * 2 * columns + column;
            const Gated all = gated(load(gate), load(gate + columns), load(gradient + row * columns + column));
            found = larger(larger(found, all.of_gate), all.of_up);
        }
    publish(found, largest);
}
