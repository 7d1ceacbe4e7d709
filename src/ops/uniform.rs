//! The small structs that ops hand to their shaders as uniform blocks, with layouts that a test can compare with the WGSL.
//!
//! A shader declares its block by hand, as the struct `Params`. [`uniform!`] declares the host's struct and records its layout in
//! [`UNIFORMS`]; the test suite has naga read every shader and compares the two, field by field.

/// The layout of a host struct, and the shaders that it is handed to.
#[derive(Debug, Clone, Copy)]
pub struct Uniform {
    /// The struct, by its path in this crate.
    pub host: &'static str,
    /// The shaders: files below `shaders/`, without extension. All variants of a file have one block.
    pub shaders: &'static [&'static str],
    /// Bytes of the struct.
    pub size: usize,
    /// Its fields, in the order of declaration.
    pub fields: &'static [Field],
}

/// A field of a uniform block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Its type, which Rust and WGSL call the same: `u32` or `f32`.
    pub scalar: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Bytes of the field.
    pub size: usize,
}

/// Declares the uniform block of some shaders: `uniform! { struct Params of "file" { count: u32, factor: f32, } }`.
///
/// The constant `UNIFORM` holds the layout. It belongs in [`UNIFORMS`]; the compiler warns of one that is not there.
macro_rules! uniform {
    (struct $name:ident of $($shader:literal),+ { $($field:ident: $scalar:ident,)+ }) => {
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        pub(super) struct $name {
            $($field: $scalar,)+
        }

        impl $name {
            pub(super) const UNIFORM: $crate::ops::uniform::Uniform = $crate::ops::uniform::Uniform {
                host: concat!(module_path!(), "::", stringify!($name)),
                shaders: &[$($shader),+],
                size: size_of::<Self>(),
                fields: &[$($crate::ops::uniform::Field {
                    name: stringify!($field),
                    scalar: stringify!($scalar),
                    offset: std::mem::offset_of!(Self, $field),
                    size: size_of::<$scalar>(),
                }),+],
            };
        }
    };
}

/// The uniform blocks of all ops.
pub const UNIFORMS: &[Uniform] = &[
    super::add::Params::UNIFORM,
    super::attention::Params::UNIFORM,
    super::cholesky::ColumnsParams::UNIFORM,
    super::cholesky::GatherParams::UNIFORM,
    super::cholesky::TileParams::UNIFORM,
    super::cholesky::TrailingParams::UNIFORM,
    super::clip::Params::UNIFORM,
    super::cooperative::Params::UNIFORM,
    super::cooperative::SplitParams::UNIFORM,
    super::dequantize::Params::UNIFORM,
    super::descent::Params::UNIFORM,
    super::embedding::Params::UNIFORM,
    super::gptq::Params::UNIFORM,
    super::gram::ConvertParams::UNIFORM,
    super::gram::Params::UNIFORM,
    super::grid::Params::UNIFORM,
    super::grouped_product::Params::UNIFORM,
    super::kl::Params::UNIFORM,
    super::layer_norm::Params::UNIFORM,
    super::magnitude::Params::UNIFORM,
    super::matmul::Params::UNIFORM,
    super::nll::Params::UNIFORM,
    super::permute::Params::UNIFORM,
    super::reduce::Params::UNIFORM,
    super::refit::Params::UNIFORM,
    super::rms_norm::Params::UNIFORM,
    super::rope::Params::UNIFORM,
    super::rtn::Params::UNIFORM,
    super::scale::Params::UNIFORM,
    super::silu_mul::Params::UNIFORM,
    super::solve::OrderParams::UNIFORM,
    super::solve::Params::UNIFORM,
    super::widen::Params::UNIFORM,
];
