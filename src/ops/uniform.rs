//! The uniform blocks: small structs of parameters that an op passes to its shader.
//!
//! A shader declares its block as the struct `Params`. The macro `uniform!` declares the same struct for the host and describes
//! its layout, which [`UNIFORMS`] lists. The test suite parses every shader with naga and compares the two layouts field by
//! field.

/// The layout of a host struct, and the shaders that receive it.
#[derive(Debug, Clone, Copy)]
pub struct Uniform {
    /// Path of the struct in this crate.
    pub host: &'static str,
    /// The shaders: files in `shaders/`, without the extension. All variants of a file have the same block.
    pub shaders: &'static [&'static str],
    /// Size of the struct in bytes.
    pub size: usize,
    /// The fields, in the order of their declaration.
    pub fields: &'static [Field],
}

/// A field of a uniform block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Name of the field.
    pub name: &'static str,
    /// Type of the field, `u32` or `f32`. Rust and WGSL use the same names.
    pub scalar: &'static str,
    /// Offset from the start of the struct, in bytes.
    pub offset: usize,
    /// Size of the field in bytes.
    pub size: usize,
}

/// Declares the uniform block of one or more shaders: `uniform! { struct Params of "file" { count: u32, factor: f32, } }`.
///
/// The associated constant `UNIFORM` describes the layout. Add it to [`UNIFORMS`]. If it is missing there, the compiler warns
/// of an unused constant.
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
    super::activate::Params::UNIFORM,
    super::add::Params::UNIFORM,
    super::attention::Params::UNIFORM,
    super::cholesky::ColumnsParams::UNIFORM,
    super::cholesky::GatherParams::UNIFORM,
    super::cholesky::TileParams::UNIFORM,
    super::cholesky::TrailingParams::UNIFORM,
    super::clip::Params::UNIFORM,
    super::columns::Params::UNIFORM,
    super::cooperative::Params::UNIFORM,
    super::cooperative::SplitParams::UNIFORM,
    super::dequantize::Params::UNIFORM,
    super::descent::Params::UNIFORM,
    super::embedding::Params::UNIFORM,
    super::fit::Params::UNIFORM,
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
    super::snap::Params::UNIFORM,
    super::softcap::Params::UNIFORM,
    super::solve::OrderParams::UNIFORM,
    super::solve::Params::UNIFORM,
    super::widen::Params::UNIFORM,
];
