// The conversion of stored weights to f32 (src/ops/widen.rs): out[first + i] = element i of a stored tensor, i < count. The kernel
// sets the flag if an element is a NaN or an infinity.
//   F16, BF16: two elements per word, the lower half first   otherwise: one f32 per word
// It computes with integers only, because a shader may flush subnormal numbers and may assume that there are no NaNs and
// infinities. One invocation per word.

struct Params {
    // Number of words, and number of elements.
    words: u32,
    count: u32,
    // Index in `out` of the first element.
    first: u32,
    // Number of invocations along x. The words are spread over two axes.
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> words: array<u32>;
// The bits of the f32 elements.
@group(0) @binding(2) var<storage, read_write> out: array<u32>;
@group(0) @binding(3) var<storage, read_write> flag: atomic<u32>;

// Writes the bits of element i, if there is such an element, and sets the flag if its exponent is all ones.
fn put(i: u32, bits: u32) {
    if i < p.count {
        out[p.first + i] = bits;
        if (bits & 0x7f800000u) == 0x7f800000u {
            atomicOr(&flag, 1u);
        }
    }
}

#ifdef F16
// Returns the f32 bits of the number whose f16 bits are the lower 16 bits of `half`.
fn widened(half: u32) -> u32 {
    let sign = (half & 0x8000u) << 16u;
    let magnitude = half & 0x7fffu;
    if magnitude >= 0x7c00u {
        return sign | 0x7f800000u | (magnitude << 13u);
    }
    if magnitude < 0x0400u {
        // A subnormal f16 is a multiple of 2^-24. As f32 it is a normal number.
        return sign | bitcast<u32>(f32(magnitude) * 0x1p-24f);
    }
    // The bias of the exponent grows from 15 to 127.
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
