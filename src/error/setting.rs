//! The settings that messages speak of, and the table in which a front end says what it calls them.

/// Declares the settings, each with its name in the library.
macro_rules! settings {
    ($($(#[$attribute:meta])* $setting:ident = $name:literal,)+) => {
        /// Something that the library is told and that a message may have to name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Setting {
            $($(#[$attribute])* $setting,)+
        }

        impl Setting {
            /// Every setting.
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
    /// `QuantizeOptions::seq_len`, or the length of the sequences of an evaluation.
    SeqLen = "seq_len",
    /// `QuantizeOptions::blocks`.
    Blocks = "blocks",
    /// The `Format` of a `WritePlan`.
    Format = "format",
    /// The directory of a `DirectorySink`.
    Out = "out",
    /// `Existing::Replace`, which lets a `DirectorySink` replace a directory with files in it.
    Replace = "Existing::Replace",
    /// The `Journal` of a `Job`, from which a stopped run goes on.
    Journal = "journal",
    /// `Memory::device`.
    Memory = "memory",
    /// `Memory::scratch`.
    Scratch = "scratch",
    /// The `Choice` of a device.
    Device = "device",
    /// The `Precision` of a device's large products.
    Precision = "precision",
    /// `Recorder::profile`.
    Profile = "profile",
    /// The model that another one is compared with in an evaluation.
    Against = "against",
    /// The prompt of a `Generator`.
    Prompt = "prompt",
    /// The most tokens that a `Generator` has room for.
    Context = "context",
    /// `GenerateOptions::tokens`.
    Tokens = "tokens",
    /// `GenerateOptions::temperature`.
    Temperature = "temperature",
    /// The file of the record of a run.
    Json = "json",
    /// The file of the page of a run.
    Report = "report",
}

/// Advice that each front end gives in its own sentence, because what can be done differs between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// The device's memory does not suffice for the run.
    SmallerRun,
    /// The GPU was lost.
    RunAgain,
    /// The GPU or its driver refused an operation.
    OtherDevice,
    /// The device cannot bind an activation of one sequence.
    ShorterSequences,
    /// The place of the output has no space left.
    MoreRoom,
}

/// What a front end calls settings, as nouns that fit after an adjective: "use a larger …".
pub trait Names {
    /// The setting within a sentence.
    fn name(&self, setting: Setting) -> &'static str;

    /// What to do, in the imperative.
    fn advice(&self, advice: Advice) -> &'static str;

    /// The setting as the first word of a sentence.
    fn subject(&self, setting: Setting) -> String {
        self.name(setting).to_string()
    }

    /// The setting with a value.
    fn value(&self, setting: Setting, value: &str) -> String {
        format!("{} {value}", self.name(setting))
    }
}

/// The names in the library's own types: the table behind `Display`.
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
