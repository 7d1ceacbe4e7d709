// out[first + i] = element i of a stored tensor as f32, i < count; raises the flag at a NaN or an infinity.
//   F16, BF16: two elements to a word, the lower half first   otherwise: f32
// On integers: a shader may flush subnormal numbers, and may assume that there are no NaNs and infinities.
// One invocation per word.

struct Params {
    words: u32,
    count: u32,
    first: u32,
    // Invocations along x, since words are spread over two axes.
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> words: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;
@group(0) @binding(3) var<storage, read_write> flag: atomic<u32>;

fn put(i: u32, bits: u32) {
    if i < p.count {
        out[p.first + i] = bits;
        if (bits & 0x7f800000u) == 0x7f800000u {
            atomicOr(&flag, 1u);
        }
    }
}

#ifdef F16
// The bits as f32 of the number whose bits as f16 are the lower 16.
fn widened(half: u32) -> u32 {
    let sign = (half & 0x8000u) << 16u;
    let magnitude = half & 0x7fffu;
    if magnitude >= 0x7c00u {
        return sign | 0x7f800000u | (magnitude << 13u);
    }
    if magnitude < 0x0400u {
        // Subnormal: a multiple of 2^-24, which is an ordinary number as f32.
        return sign | bitcast<u32>(f32(magnitude) * 0x1p-24f);
    }
    // The exponent's bias grows from 15 to 127.
    return sign | ((magnitude << 13u) + (112u << 23u));
}
#endif

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let at = id.y * p.stride + id.x;
    if at >= p.words {
        return;
    }
    let word = words[at];
#ifdef F16
    put(2u * at, widened(word));
    put(2u * at + 1u, widened(word >> 16u));
#else
#ifdef BF16
    put(2u * at, word << 16u);
    put(2u * at + 1u, word & 0xffff0000u);
#else
    put(at, word);
#endif
#endif
}
