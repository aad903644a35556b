// What each kernel computes is said in `kernels.py`, which compiles this. LAYERS is float, half or bfloat; the other names
// in capitals are numbers, given there too. A row's H columns are dealt out four at a time.

#define MOST 4  // such fours to a thread that normalises
#define AT_ONCE 8  // such fours that a thread asks for before the first is there

struct half { unsigned short bits; };
struct bfloat { unsigned short bits; };
typedef LAYERS T;

__device__ float widen(float x) { return x; }
__device__ float widen(bfloat x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ void narrow(float x, float& y) { y = x; }
__device__ void narrow(float x, bfloat& y) {  // to the nearest, ties to even
    const unsigned bits = __float_as_uint(x);
    y.bits = x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#ifdef __CUDACC__
__device__ float widen(half x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
__device__ void narrow(float x, half& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
#endif

template <class X> struct alignas(4 * sizeof(X)) Four { X at[4]; };

template <class X> __device__ float4 load4(const X* from) {
    const Four<X> x = *(const Four<X>*)from;
    return make_float4(widen(x.at[0]), widen(x.at[1]), widen(x.at[2]), widen(x.at[3]));
}

template <class X> __device__ void store4(float4 x, X* to) {
    Four<X> y;
    narrow(x.x, y.at[0]); narrow(x.y, y.at[1]); narrow(x.z, y.at[2]); narrow(x.w, y.at[3]);
    *(Four<X>*)to = y;
}

__device__ float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
__device__ float4 plus(float4 a, float b) { return plus(a, make_float4(b, b, b, b)); }
__device__ float4 times(float4 a, float b) { return make_float4(a.x * b, a.y * b, a.z * b, a.w * b); }
__device__ float4 times(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
__device__ float total(float4 x) { return x.x + x.y + x.z + x.w; }

__device__ float warp_sum(float x) {
    for (int offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(~0u, x, offset);
    return x;
}

__device__ float block_sum(float x) {
    __shared__ float sums[32];
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? sums[threadIdx.x % 32] : 0);
}

// A row that lies in a block's threads.
template <class W>
__device__ void normalise(float4 (&x)[MOST], const W* weight, const W* bias, T* out, int H, float eps) {
    float sum = 0;
    #pragma unroll
    for (int k = 0; k < MOST; ++k)
        if (4 * (threadIdx.x + k * blockDim.x) < H) sum += total(x[k]);
    const float mean = block_sum(sum) / H;
    sum = 0;
    #pragma unroll
    for (int k = 0; k < MOST; ++k)
        if (4 * (threadIdx.x + k * blockDim.x) < H) {
            x[k] = plus(x[k], -mean);
            sum += total(times(x[k], x[k]));
        }
    const float scale = rsqrtf(block_sum(sum) / H + eps);
    #pragma unroll
    for (int k = 0; k < MOST; ++k) {
        const int column = 4 * (threadIdx.x + k * blockDim.x);
        if (column < H)
            store4(plus(times(times(x[k], scale), load4(weight + column)), load4(bias + column)), out + column);
    }
}

// A block for each token of each row. slots, writes: where a row belongs, and whether it goes there; null: as it lies.
extern "C" __global__ void add_norm(const T* a, const T* b, const T* weight, const T* bias, T* out, const int* slots,
                                    const int* writes, int length, int out_length, int H, float eps) {
    const int row = blockIdx.x / length;
    if (writes && !writes[row]) return;
    const long long from = (long long)blockIdx.x * H;
    const long long to = slots ? ((long long)slots[row] * out_length + blockIdx.x % length) * H : from;
    float4 x[MOST];
    #pragma unroll
    for (int k = 0; k < MOST; ++k) {
        const int column = 4 * (threadIdx.x + k * blockDim.x);
        if (column < H) x[k] = plus(load4(a + from + column), load4(b + from + column));
    }
    normalise(x, weight, bias, out + to, H, eps);
}

// A block for each token of each row.
extern "C" __global__ void begin(const long long* ids, const float* sent_terms, const float* word,
                                 const float* position, const float* segment, const float* weight, const float* bias,
                                 T* states, float* mask, T* attention_bias, float* terms, float* ran, int* at,
                                 int* done, int* count, int rows, int length, int H, int num_layers, float eps,
                                 float lowest) {
    const int token = blockIdx.x % length, row = blockIdx.x / length;
    __shared__ long long id, type;
    if (threadIdx.x == 0) {
        id = ids[blockIdx.x];
        type = ids[rows * length + blockIdx.x];
        const float real = (float)ids[2 * rows * length + blockIdx.x];
        mask[blockIdx.x] = real;
        narrow(real == 0 ? lowest : 0, attention_bias[blockIdx.x]);
    }
    if (token == 0) {
        for (int i = threadIdx.x; i <= num_layers; i += blockDim.x)
            terms[row * (num_layers + 1) + i] = sent_terms[row * (num_layers + 1) + i];
        for (int i = threadIdx.x; i < num_layers; i += blockDim.x) ran[row * num_layers + i] = 0;
        if (threadIdx.x == 0) at[row] = -1, done[row] = 0, *count = 0;
    }
    __syncthreads();
    float4 x[MOST];
    #pragma unroll
    for (int k = 0; k < MOST; ++k) {
        const int column = 4 * (threadIdx.x + k * blockDim.x);
        if (column < H)
            x[k] = plus(plus(load4(word + id * H + column), load4(position + (long long)token * H + column)),
                        load4(segment + type * H + column));
    }
    normalise(x, weight, bias, states + (long long)blockIdx.x * H, H, eps);
}

// The mean of a row's real tokens. 64 columns to a block, 16 fours by 32 tokens at once.
extern "C" __global__ void pool(const T* states, const float* mask, float* pooled, int length, int H) {
    __shared__ float4 sums[32][16];
    __shared__ float counts[32];
    const int four = threadIdx.x % 16, first = threadIdx.x / 16, column = blockIdx.x * 64 + four * 4;
    states += (long long)blockIdx.y * length * H;
    mask += blockIdx.y * length;
    float4 sum = make_float4(0, 0, 0, 0);
    float count = 0;
    #pragma unroll 4
    for (int token = first; token < length; token += 32) {
        const bool real = mask[token] != 0;
        const float4 x = column < H ? load4(states + (long long)token * H + column) : sum;
        if (real) sum = plus(sum, x), count += 1;
    }
    sums[first][four] = sum;
    if (four == 0) counts[first] = count;
    __syncthreads();
    if (first != 0 || column >= H) return;
    count = counts[0];
    for (int i = 1; i < 32; ++i) sum = plus(sum, sums[i][four]), count += counts[i];
    store4(times(sum, 1 / count), pooled + (long long)blockIdx.y * H + column);
}

// What a warp's units make of some rows, in every lane: sum[unit][row] = weight[unit] . seen[row].
template <int UNITS, int ROWS>
__device__ void weigh(const float* weight, int units, const float* seen, int here, int H, float (&sum)[UNITS][ROWS]) {
    #pragma unroll
    for (int unit = 0; unit < UNITS; ++unit)
        #pragma unroll
        for (int row = 0; row < ROWS; ++row) sum[unit][row] = 0;
    #pragma unroll 6
    for (int i = 4 * (threadIdx.x % 32); i < H; i += 128) {
        float4 w[UNITS];
        #pragma unroll
        for (int unit = 0; unit < UNITS; ++unit)
            w[unit] = unit < units ? load4(weight + (long long)unit * H + i) : make_float4(0, 0, 0, 0);
        #pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            if (row >= here) break;
            const float4 x = load4(seen + row * H + i);
            #pragma unroll
            for (int unit = 0; unit < UNITS; ++unit) sum[unit][row] += total(times(w[unit], x));
        }
    }
    #pragma unroll
    for (int row = 0; row < ROWS; ++row) {
        if (row >= here) break;
        #pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) sum[unit][row] = warp_sum(sum[unit][row]);
    }
}

// A part of a gate's hidden units, and some rows, to a block of 8 warps. parts: of the margins, to be added up.
extern "C" __global__ void __launch_bounds__(256)
gates(const float* pooled, const float* hidden_weight, const float* hidden_bias, const float* margin_weight,
      float* parts, int rows, int rows_here, int H, int width, int num_gates) {
    extern __shared__ float4 room[];
    __shared__ float sums[8][ROWS_PER_BLOCK];
    float* seen = (float*)room;
    const int gate = blockIdx.x / PARTS, part = blockIdx.x % PARTS, first = blockIdx.y * rows_here;
    const int here = min(rows_here, rows - first), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int row = warp; row < here; row += 8) {  // normalised, without weights
        const float* x = pooled + (long long)(first + row) * H;
        float* y = seen + row * H;
        float value = 0;
        #pragma unroll 6
        for (int i = 4 * lane; i < H; i += 128) store4(load4(x + i), y + i), value += total(load4(y + i));
        const float mean = warp_sum(value) / H;
        value = 0;
        for (int i = 4 * lane; i < H; i += 128) {
            const float4 z = plus(load4(y + i), -mean);
            value += total(times(z, z));
        }
        const float scale = rsqrtf(warp_sum(value) / H + 1e-5f);
        for (int i = 4 * lane; i < H; i += 128) store4(times(plus(load4(y + i), -mean), scale), y + i);
    }
    __syncthreads();
    const int end = min(width, (part + 1) * ((width + PARTS - 1) / PARTS));
    float margin = 0;  // of the lane's row
    for (int unit = part * ((width + PARTS - 1) / PARTS) + warp * UNITS_PER_WARP; unit < end; unit += 8 * UNITS_PER_WARP) {
        float sum[UNITS_PER_WARP][ROWS_PER_BLOCK];
        const int at = gate * width + unit;
        weigh(hidden_weight + (long long)at * H, end - unit, seen, here, H, sum);
        #pragma unroll
        for (int i = 0; i < UNITS_PER_WARP; ++i) {
            float x = 0;
            #pragma unroll
            for (int row = 0; row < ROWS_PER_BLOCK; ++row) x = row == lane ? sum[i][row] : x;
            if (i < end - unit && lane < here)  // weights of margins lie on the diagonal of blocks
                margin += margin_weight[(long long)gate * num_gates * width + at + i] * tanhf(x + hidden_bias[at + i]);
        }
    }
    if (lane < here) sums[warp][lane] = margin;
    __syncthreads();
    if (threadIdx.x >= here) return;
    margin = 0;
    for (int i = 0; i < 8; ++i) margin += sums[i][threadIdx.x];
    parts[((first + threadIdx.x) * num_gates + gate) * PARTS + part] = margin;
}

// The first layer from `now` on whose gate lets a row that may still run so many; none: num_layers.
__device__ int following(int now, int left, const float* margin, const float* term, int num_layers) {
    while (left > 0 && now < num_layers && !(margin[now] > term[now])) ++now;
    return left > 0 ? now : num_layers;
}

// What the host waits for, all of it at once: see `Lane.report`.
__device__ void tell(int* report, int layer, int rows, int* count) {
    *(volatile unsigned long long*)report = (unsigned long long)++*count << 32 | (unsigned)rows << 16 | layer;
}

// By one block. terms: L thresholds and the most layers, of each row.
extern "C" __global__ void decide(const float* parts, const float* margin_bias, float* margins, const float* terms,
                                  float* ran, int* at, int* done, int* next, int* planned, const int* slots,
                                  int* listed, int* writes, int* count, int* report, int layer, int num_slots, int rows,
                                  int num_layers) {
    for (int i = threadIdx.x; i < rows * num_layers; i += blockDim.x) {
        float margin = margin_bias[i % num_layers];
        for (int part = 0; part < PARTS; ++part) margin += parts[i * PARTS + part];
        margins[i] = margin;
    }
    __syncthreads();
    for (int row = threadIdx.x; row < rows; row += blockDim.x) {
        const float* term = terms + row * (num_layers + 1);
        const int left = (int)term[num_layers] - done[row];
        planned[row] = next[row] = following(at[row] + 1, left, margins + row * num_layers, term, num_layers);
    }
    __syncthreads();
    for (int slot = threadIdx.x; slot < num_slots; slot += blockDim.x) {
        const int row = slots[slot];
        writes[slot] = row >= 0 && next[row] == layer;
        if (!writes[slot]) continue;
        const float* term = terms + row * (num_layers + 1);
        at[row] = layer;
        ran[row * num_layers + layer] = 1;
        const int left = (int)term[num_layers] - ++done[row];
        planned[row] = following(layer + 1, left, margins + row * num_layers, term, num_layers);
    }
    __syncthreads();
    if (threadIdx.x >= 32) return;
    int first = num_layers, many = 0;
    for (int row = threadIdx.x; row < rows; row += 32) first = min(first, planned[row]);
    for (int offset = 16; offset; offset >>= 1) first = min(first, (int)__shfl_xor_sync(~0u, first, offset));
    for (int some = 0; some < rows; some += 32) {
        const int row = some + threadIdx.x;
        const bool here = row < rows && planned[row] == first;
        const unsigned all = __ballot_sync(~0u, here), before = all & ((1u << threadIdx.x) - 1);
        if (here) listed[many + __popc(before)] = row;
        many += __popc(all);
    }
    for (int i = many + threadIdx.x; i < rows; i += 32) listed[i] = -1;
    if (threadIdx.x == 0) tell(report, first, many, count);
}

// `pool`, `gates` and `decide` of a single row in one, for whoever waits for the report: every block pools the row, a
// warp takes a unit, and the first warp of the block that is last decides, a layer to each of its lanes. arrived: 0
// before and after.
extern "C" __global__ void __launch_bounds__(1024)
decide_alone(const T* states, const float* mask, const float* hidden_weight, const float* hidden_bias,
             const float* margin_weight, float* parts, int* arrived, const float* margin_bias, float* margins,
             const float* terms, float* ran, int* at, int* done, int* next, int* planned, const int* slots, int* listed,
             int* writes, int* count, int* report, int layer, int num_slots, int length, int H, int width, int num_gates) {
    extern __shared__ float4 room[];
    __shared__ float counts[128];
    __shared__ float sums[32];
    float* seen = (float*)(room + blockDim.x);
    const int gate = blockIdx.x / PARTS, part = blockIdx.x % PARTS, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int fours = H / 4, groups = min(128, (int)blockDim.x / fours), group = threadIdx.x / fours;
    float4 x = make_float4(0, 0, 0, 0);
    float real_tokens = 0;
    for (int some = group; group < groups && some < length; some += AT_ONCE * groups) {
        Four<T> y[AT_ONCE];
        float real[AT_ONCE];
        #pragma unroll
        for (int k = 0; k < AT_ONCE; ++k) {
            const int token = min(some + k * groups, length - 1);
            y[k] = *(const Four<T>*)(states + (long long)token * H + 4 * (threadIdx.x % fours));
            real[k] = mask[token];
        }
        #pragma unroll
        for (int k = 0; k < AT_ONCE; ++k)
            if (some + k * groups < length && real[k] != 0) x = plus(x, load4(y[k].at)), real_tokens += 1;
    }
    room[threadIdx.x] = x;
    if (group < groups && threadIdx.x % fours == 0) counts[group] = real_tokens;
    __syncthreads();
    if (group == 0)
        for (int i = 1; i < groups; ++i) x = plus(x, room[i * fours + threadIdx.x]), real_tokens += counts[i];
    x = group == 0 ? times(x, 1 / real_tokens) : make_float4(0, 0, 0, 0);
    const float mean = block_sum(total(x)) / H;
    if (group == 0) x = plus(x, -mean);
    const float scale = rsqrtf(block_sum(total(times(x, x))) / H + 1e-5f);
    if (group == 0) store4(times(x, scale), seen + 4 * threadIdx.x);
    __syncthreads();
    const int end = min(width, (part + 1) * ((width + PARTS - 1) / PARTS));
    float margin = 0;
    for (int unit = part * ((width + PARTS - 1) / PARTS) + warp; unit < end; unit += blockDim.x / 32) {
        float sum[1][1];
        const int index = gate * width + unit;
        weigh(hidden_weight + (long long)index * H, 1, seen, 1, H, sum);
        margin += margin_weight[(long long)gate * num_gates * width + index] * tanhf(sum[0][0] + hidden_bias[index]);
    }
    if (lane == 0) sums[warp] = margin;
    __syncthreads();
    if (warp != 0) return;
    const int last_layer = at[0], before = done[0], row = slots[0];
    const float term = lane < num_gates ? terms[lane] : 0, most = terms[num_gates];
    const float constant = lane < num_gates ? margin_bias[lane] : 0;
    margin = warp_sum(lane < blockDim.x / 32 ? sums[lane] : 0);
    bool last = false;
    if (lane == 0) {
        parts[blockIdx.x] = margin;
        __threadfence();
        last = atomicAdd(arrived, 1) == gridDim.x - 1;
        __threadfence();
    }
    if (!__ballot_sync(~0u, last)) return;
    __syncwarp();  // whatever lane 0 may read now, the others may
    margin = constant;
    if (lane < num_gates)
        for (int i = 0; i < PARTS; ++i) margin += parts[lane * PARTS + i];
    const unsigned open = __ballot_sync(~0u, lane < num_gates && lane > last_layer && margin > term);
    const unsigned later = open & (open - 1);
    const int left = (int)most - before, now = left > 0 && open ? __ffs(open) - 1 : num_gates;
    const bool runs = num_slots && row >= 0 && now == layer;
    const int then = !runs ? now : left > 1 && later ? __ffs(later) - 1 : num_gates;
    if (lane == 0) tell(report, then, 1, count);
    if (lane < num_gates) margins[lane] = margin;
    if (lane != 0) return;
    *arrived = 0, next[0] = now, planned[0] = then, listed[0] = 0;
    if (num_slots) writes[0] = runs;
    if (runs) at[0] = layer, done[0] = before + 1, ran[layer] = 1;
}

// A block for each token of each slot.
extern "C" __global__ void gather(const int* listed, int* slots, const T* states, const T* bias, T* gathered,
                                  T* gathered_bias, int length, int H) {
    const int slot = blockIdx.x / length, token = blockIdx.x % length, row = listed[slot];
    const long long from = (long long)max(row, 0) * length + token;
    if (threadIdx.x == 0) gathered_bias[blockIdx.x] = bias[from];
    if (threadIdx.x == 0 && token == 0) slots[slot] = row;
    for (int i = 4 * threadIdx.x; i < H; i += 4 * blockDim.x)
        *(Four<T>*)(gathered + (long long)blockIdx.x * H + i) = *(const Four<T>*)(states + from * H + i);
}

// Some units of the head's pooler, and some rows, to a block of 8 warps. The block that is last classifies: a row and
// class to a warp. arrived: 0 before and after. answer: of each row logits, then the layers that ran.
extern "C" __global__ void __launch_bounds__(256)
reply(const T* states, const float* weight, const float* bias, float* units, int* arrived, const float* class_weight,
      const float* class_bias, const float* ran, float* answer, int rows, int rows_here, int units_here, int length,
      int H, int num_classes, int num_layers) {
    extern __shared__ float4 room[];
    __shared__ bool last;
    float* seen = (float*)room;
    const int first = blockIdx.y * rows_here, here = min(rows_here, rows - first), lane = threadIdx.x % 32;
    for (int i = 4 * threadIdx.x; i < here * H; i += 4 * blockDim.x)
        store4(load4(states + (long long)(first + i / H) * length * H + i % H), seen + i);
    __syncthreads();
    const int unit = (blockIdx.x * 8 + threadIdx.x / 32) * units_here;
    float sum[UNITS_PER_WARP][ROWS_PER_BLOCK];
    weigh(weight + (long long)unit * H, min(units_here, H - unit), seen, here, H, sum);
    #pragma unroll
    for (int i = 0; i < UNITS_PER_WARP; ++i)
        #pragma unroll
        for (int row = 0; row < ROWS_PER_BLOCK; ++row)
            if (row == lane && row < here && i < units_here && unit + i < H)
                units[(long long)(first + row) * H + unit + i] = tanhf(sum[i][row] + bias[unit + i]);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrived, 1) == gridDim.x * gridDim.y - 1;
        if (last) *arrived = 0;
        __threadfence();
    }
    __syncthreads();
    if (!last) return;
    const int to_each = num_classes + num_layers;
    for (int i = threadIdx.x; i < rows * num_layers; i += blockDim.x)
        answer[i / num_layers * to_each + num_classes + i % num_layers] = ran[i];
    for (int i = threadIdx.x / 32; i < rows * num_classes; i += blockDim.x / 32) {
        const int row = i / num_classes, number = i % num_classes;
        float value = 0;
        #pragma unroll 6
        for (int k = 4 * lane; k < H; k += 128)
            value += total(times(load4(class_weight + (long long)number * H + k), load4(units + (long long)row * H + k)));
        value = warp_sum(value);
        if (lane == 0) answer[row * to_each + number] = value + class_bias[number];
    }
}
