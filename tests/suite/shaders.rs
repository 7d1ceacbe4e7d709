//! The text of every shader, in every variant. It is valid WGSL, translates for every back end, keeps to the limits of the portable
//! tier, and lays its uniform block out as the host does. No device is needed.

use std::collections::BTreeSet;
use std::path::Path;

use aquatint::device::shader::{Permutation, permutations};
use aquatint::ops::uniform::{UNIFORMS, Uniform};
use naga::back::pipeline_constants::process_overrides;
use naga::valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{AddressSpace, GlobalVariable, Module, Scalar, TypeInner, back};

/// The bytes that the recorder reserves for a uniform block.
const LARGEST_UNIFORM: usize = 256;

/// The module of a permutation, validated. `fast`: the text that a device of the fast tier gets.
fn parse(permutation: Permutation, fast: bool) -> (Module, ModuleInfo) {
    let (name, source) = (permutation.name, permutation.source(fast));
    let module =
        naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&source)));
    // The portable tier asks for nothing but the core of WebGPU, which has pack2x16float.
    let core = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let more = Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP | Capabilities::COOPERATIVE_MATRIX;
    let capabilities = if fast { core | more } else { core };
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator.subgroup_stages(ShaderStages::COMPUTE).subgroup_operations(SubgroupOperationSet::all());
    let info = validator.validate(&module);
    let info = info.unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&source)));
    let threads = permutation.is_fast().then(|| ("threads".to_string(), 256.0));
    let resolved = process_overrides(&module, &info, None, &threads.into_iter().collect());
    let (module, info) = resolved.unwrap_or_else(|e| panic!("{name}: {e}"));
    (module.into_owned(), info.into_owned())
}

/// The permutations that a browser can run.
fn portable() -> impl Iterator<Item = Permutation> {
    permutations().filter(|permutation| !permutation.is_fast())
}

/// Every permutation in every text that some device gets, and whether that is a device of the fast tier.
fn forms() -> impl Iterator<Item = (Permutation, bool)> {
    portable().map(|permutation| (permutation, false)).chain(permutations().map(|permutation| (permutation, true)))
}

#[test]
fn names_are_unique() {
    let names: BTreeSet<_> = permutations().map(|p| p.name).collect();
    assert_eq!(names.len(), permutations().count());
}

/// The variables that are shared by invocations, or with the host.
fn globals(module: &Module) -> impl Iterator<Item = &GlobalVariable> {
    module.global_variables.iter().map(|(_, global)| global)
}

/// A struct as the host and WGSL both describe it: its size, and name, type, offset and size of each field.
#[derive(Debug, PartialEq)]
struct Layout<'a> {
    size: usize,
    fields: Vec<(&'a str, &'static str, usize, usize)>,
}

impl Layout<'static> {
    fn of_host(uniform: &Uniform) -> Self {
        let fields = uniform.fields.iter().map(|field| (field.name, field.scalar, field.offset, field.size));
        Self { size: uniform.size, fields: fields.collect() }
    }
}

impl<'a> Layout<'a> {
    /// The layout of the only uniform block of `module`. Panics if it has another number of them.
    fn of_shader(name: &str, module: &'a Module) -> Self {
        let blocks: Vec<_> = globals(module).filter(|global| global.space == AddressSpace::Uniform).collect();
        assert_eq!(blocks.len(), 1, "{name}: the recorder binds one uniform block");
        let TypeInner::Struct { members, span } = &module.types[blocks[0].ty].inner else {
            panic!("{name}: the uniform block is no struct");
        };
        let fields = members.iter().map(|member| {
            let inner = &module.types[member.ty].inner;
            let scalar = match inner {
                TypeInner::Scalar(Scalar::U32) => "u32",
                TypeInner::Scalar(Scalar::F32) => "f32",
                other => panic!("{name}: {:?} is {other:?}, and the host knows u32 and f32", member.name),
            };
            let size = inner.size(module.to_ctx()) as usize;
            (member.name.as_deref().unwrap_or_default(), scalar, member.offset as usize, size)
        });
        Self { size: *span as usize, fields: fields.collect() }
    }
}

#[test]
fn uniform_blocks_are_laid_out_as_on_the_host() {
    for (permutation, fast) in forms() {
        let Permutation { name, file, .. } = permutation;
        let hosts: Vec<_> = UNIFORMS.iter().filter(|uniform| uniform.shaders.contains(&file)).collect();
        assert_eq!(hosts.len(), 1, "{name}: host structs for shaders/{file}.wgsl: {hosts:?}");
        let (module, _) = parse(permutation, fast);
        let (shader, host) = (Layout::of_shader(name, &module), Layout::of_host(hosts[0]));
        assert_eq!(shader, host, "{name}: shaders/{file}.wgsl on the left, {} on the right", hosts[0].host);
        assert!(host.size <= LARGEST_UNIFORM, "{}: {} bytes", hosts[0].host, host.size);
    }
}

#[test]
fn every_uniform_struct_has_its_shaders() {
    let files: BTreeSet<_> = permutations().map(|permutation| permutation.file).collect();
    for uniform in UNIFORMS {
        for shader in uniform.shaders {
            assert!(files.contains(shader), "{}: no permutation is made of shaders/{shader}.wgsl", uniform.host);
        }
    }
}

#[test]
fn translate_to_spirv() {
    for (permutation, fast) in forms() {
        let (module, info) = parse(permutation, fast);
        let words = back::spv::write_vec(&module, &info, &back::spv::Options::default(), None);
        assert!(!words.unwrap_or_else(|e| panic!("{}: {e}", permutation.name)).is_empty());
    }
}

#[test]
fn translate_to_metal() {
    for (permutation, fast) in forms() {
        let (module, info) = parse(permutation, fast);
        let lang_version = if fast { (2, 3) } else { (2, 0) };
        let options = back::msl::Options { lang_version, ..Default::default() };
        let (_, names) = back::msl::write_string(&module, &info, &options, &back::msl::PipelineOptions::default())
            .unwrap_or_else(|e| panic!("{}: {e}", permutation.name));
        assert!(names.entry_point_names.iter().all(Result::is_ok), "{}: {names:?}", permutation.name);
    }
}

#[test]
fn translate_to_hlsl() {
    for permutation in portable() {
        let (module, info) = parse(permutation, false);
        let (options, pipeline) = (back::hlsl::Options::default(), back::hlsl::PipelineOptions::default());
        let mut text = String::new();
        let names = back::hlsl::Writer::new(&mut text, &options, &pipeline)
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{}: {e}", permutation.name));
        assert!(
            names.entry_point_names.iter().all(Result::is_ok),
            "{}: {:?}",
            permutation.name,
            names.entry_point_names
        );
    }
}

#[test]
fn keep_to_the_limits_of_the_portable_tier() {
    for permutation in portable() {
        let name = permutation.name;
        let (module, _) = parse(permutation, false);
        let entries: Vec<_> = module.entry_points.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(entries, ["main"], "{name}");
        let invocations: u32 = module.entry_points[0].workgroup_size.iter().product();
        assert!(invocations <= 256, "{name}: {invocations} invocations");
        let workgroup = globals(&module).filter(|g| g.space == AddressSpace::WorkGroup);
        let bytes: u32 = workgroup.map(|g| module.types[g.ty].inner.size(module.to_ctx()).next_multiple_of(16)).sum();
        assert!(bytes <= 16384, "{name}: {bytes} bytes of workgroup memory");
        let storage = globals(&module).filter(|g| matches!(g.space, AddressSpace::Storage { .. })).count();
        assert!(storage <= 8, "{name}: {storage} storage buffers");
    }
}

#[test]
fn shapes_of_the_fast_tier_keep_to_the_limits_of_small_gpus() {
    let mut extents = BTreeSet::new();
    for permutation in permutations().filter(Permutation::is_fast) {
        let name = permutation.name;
        let (module, _) = parse(permutation, true);
        let workgroup = globals(&module).filter(|g| g.space == AddressSpace::WorkGroup);
        let bytes: u32 = workgroup.map(|g| module.types[g.ty].inner.size(module.to_ctx())).sum();
        assert!(bytes <= 16384, "{name}: {bytes} bytes of workgroup memory");
        let storage = globals(&module).filter(|g| matches!(g.space, AddressSpace::Storage { .. })).count();
        assert!(storage <= 8, "{name}: {storage} storage buffers");
        extents.insert(name.split('_').nth(1).unwrap());
    }
    assert_eq!(extents, BTreeSet::from(["16", "8"]));
}

/// Adds the `.wgsl` files below `folder` to `found`, by the names that the list of permutations uses.
fn shader_files(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() {
            shader_files(&path, &format!("{prefix}{name}/"), found);
        } else if path.extension().is_some_and(|extension| extension == "wgsl") {
            found.insert(format!("{prefix}{name}"));
        }
    }
}

#[test]
fn every_file_is_embedded_and_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let mut files = BTreeSet::new();
    shader_files(&root, "", &mut files);
    // `source` panics where a file that it needs is not embedded.
    let mut used: BTreeSet<String> =
        permutations().inspect(|p| drop(p.source(true))).map(|p| p.file.to_string()).collect();
    let mut unread: Vec<String> = used.iter().cloned().collect();
    while let Some(file) = unread.pop() {
        let text = std::fs::read_to_string(root.join(format!("{file}.wgsl"))).unwrap();
        for import in text.lines().filter_map(|line| line.trim().strip_prefix("#import ")) {
            let import = format!("shared/{}", import.trim());
            if used.insert(import.clone()) {
                unread.push(import);
            }
        }
    }
    assert_eq!(files, used);
}
