//! The settings that messages can name, and the trait with which a front end gives them its own names.

/// Declares the settings, each with its name in the library.
macro_rules! settings {
    ($($(#[$attribute:meta])* $setting:ident = $name:literal,)+) => {
        /// An option or argument of the library that a message can name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Setting {
            $($(#[$attribute])* $setting,)+
        }

        impl Setting {
            /// All settings.
            pub const ALL: &'static [Self] = &[$(Self::$setting),+];

            fn name_in_the_library(self) -> &'static str {
                match self {
                    $(Self::$setting => $name,)+
                }
            }
        }
    };
}

settings! {
    /// `QuantizeOptions::method`.
    Method = "method",
    /// `QuantizeOptions::bits`.
    Bits = "bits",
    /// `QuantizeOptions::bits_for`.
    BitsFor = "bits_for",
    /// `QuantizeOptions::skip`.
    Skip = "skip",
    /// `QuantizeOptions::lm_head`.
    LmHead = "lm_head",
    /// `QuantizeOptions::group_size`.
    GroupSize = "group_size",
    /// `QuantizeOptions::grid`.
    Grid = "grid",
    /// `QuantizeOptions::rotation`.
    Rotation = "rotation",
    /// `QuantizeOptions::alpha`.
    Alpha = "alpha",
    /// `AlphaPolicy::overrides`.
    AlphaOverrides = "alpha.overrides",
    /// `AlphaPolicy::shrinkage`.
    AlphaShrinkage = "alpha.shrinkage",
    /// `QuantizeOptions::correction_damping`.
    CorrectionDamping = "correction_damping",
    /// `QuantizeOptions::rounding_damping`.
    RoundingDamping = "rounding_damping",
    /// `QuantizeOptions::samples`.
    Samples = "samples",
    /// `QuantizeOptions::seq_len`, or the length of the windows of an evaluation.
    SeqLen = "seq_len",
    /// `QuantizeOptions::blocks`.
    Blocks = "blocks",
    /// The `Format` of a `WritePlan`.
    Format = "format",
    /// `QuantizeOptions::mixture`
    Mixture = "mixture",
    /// The directory of a `DirectorySink`, or the file of a `FileSink`.
    Out = "out",
    /// `Existing::Replace`, which lets a sink replace a file, or a directory that has files in it.
    Replace = "Existing::Replace",
    /// The `Journal` of a `Job`, from which a stopped run can be resumed.
    Journal = "journal",
    /// `Memory::device`.
    Memory = "memory",
    /// `Memory::scratch`.
    Scratch = "scratch",
    /// The `Choice` of a device.
    Device = "device",
    /// The `Precision` of the large matrix products on a device.
    Precision = "precision",
    /// `Recorder::profile`.
    Profile = "profile",
    /// The reference model of an evaluation, with which the evaluated model is compared.
    Against = "against",
    /// The prompt of a `Generator`.
    Prompt = "prompt",
    /// The context of a `Generator`: the greatest number of tokens that it has room for.
    Context = "context",
    /// `GenerateOptions::tokens`.
    Tokens = "tokens",
    /// `GenerateOptions::temperature`.
    Temperature = "temperature",
    /// The JSON file with the record of a run.
    Json = "json",
    /// The HTML file with the page about a run.
    Report = "report",
}

/// Advice at the end of a message. Each front end words it itself, because users can do different things in each of
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// The memory of the device is too small for the run.
    SmallerRun,
    /// The GPU was lost.
    RunAgain,
    /// The GPU or its driver refused an operation.
    OtherDevice,
    /// The device cannot bind an activation of a single sequence as one buffer.
    ShorterSequences,
    /// There is no space left at the destination of the output.
    MoreRoom,
}

/// The names that a front end gives to settings. Each is a noun that fits after an adjective: "use a larger …".
pub trait Names {
    /// Name of the setting within a sentence.
    fn name(&self, setting: Setting) -> &'static str;

    /// The advice as a phrase in the imperative.
    fn advice(&self, advice: Advice) -> &'static str;

    /// Name of the setting at the beginning of a sentence.
    fn subject(&self, setting: Setting) -> String {
        self.name(setting).to_string()
    }

    /// The setting together with a value.
    fn value(&self, setting: Setting, value: &str) -> String {
        format!("{} {value}", self.name(setting))
    }
}

/// The names of settings in the types of the library. `Display` of errors and phrases uses this table.
#[derive(Debug, Clone, Copy)]
pub struct LibraryNames;

impl Names for LibraryNames {
    fn name(&self, setting: Setting) -> &'static str {
        setting.name_in_the_library()
    }

    fn advice(&self, advice: Advice) -> &'static str {
        match advice {
            Advice::SmallerRun => "use fewer or shorter samples, or the CPU",
            Advice::RunAgain => "run again, on the CPU if it happens again",
            Advice::OtherDevice => "try the CPU, and please report this",
            Advice::ShorterSequences => "use shorter sequences or the CPU",
            Advice::MoreRoom => "make room, or choose another place",
        }
    }
}
