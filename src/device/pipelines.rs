//! Compiling a kernel for a GPU.
//!
//! All kernels have the same interface: bind group 0, with the uniform block at binding 0, then the inputs (read-only storage),
//! then the outputs (read-write storage). The entry point is `main`.

/// A compiled kernel with the layout of its bind group.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
}

/// What there is to compile.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Name in `shaders/permutations`, which labels what is made.
    pub(super) name: &'static str,
    /// WGSL text.
    pub(super) source: String,
    /// Number of input bindings.
    pub(super) inputs: usize,
    /// Number of output bindings.
    pub(super) outputs: usize,
    /// Value of the override constant `threads`, for kernels whose workgroup size depends on the size of a subgroup.
    pub(super) threads: Option<u32>,
}

/// Compiles a kernel. wgpu reports errors through the device's callback.
pub(super) fn compile(device: &wgpu::Device, kernel: &Kernel) -> Pipeline {
    let label = Some(kernel.name);
    let module = shader_module(
        device,
        wgpu::ShaderModuleDescriptor { label, source: wgpu::ShaderSource::Wgsl(kernel.source.as_str().into()) },
    );
    let entry = |binding: usize, ty: wgpu::BufferBindingType| wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: binding == 0, min_binding_size: None },
        count: None,
    };
    let storage =
        |binding: usize| entry(binding, wgpu::BufferBindingType::Storage { read_only: binding <= kernel.inputs });
    let entries: Vec<_> = std::iter::once(entry(0, wgpu::BufferBindingType::Uniform))
        .chain((1..=kernel.inputs + kernel.outputs).map(storage))
        .collect();
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let constants: Vec<_> = kernel.threads.map(|threads| ("threads", f64::from(threads))).into_iter().collect();
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label,
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions { constants: &constants, ..Default::default() },
        cache: None,
    });
    Pipeline { pipeline, layout }
}

/// Compiles a shader module. Debug builds insert every run-time check that wgpu offers. Release builds leave out the bound on
/// loop counts, because it keeps drivers from unrolling loops.
fn shader_module(device: &wgpu::Device, descriptor: wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule {
    if cfg!(debug_assertions) {
        return device.create_shader_module(descriptor);
    }
    let mut checks = wgpu::ShaderRuntimeChecks::checked();
    checks.force_loop_bounding = false;
    // SAFETY: only loops are left unchecked. Every loop in this crate's shaders runs over an extent from the uniform block, so
    // all of them end.
    unsafe { device.create_shader_module_trusted(descriptor, checks) }
}
