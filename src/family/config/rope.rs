//! Reads rotary position embedding (RoPE) from `config.json`. There are two forms: the older one, and that of
//! transformers 5. A model has one table of angles for all layers, or one for each kind of layer.
//!
//! `keys` finds and checks the keys of one table, and `forms` writes both forms into a copy of a model.

mod forms;
mod keys;

use super::fields::Fields;
use crate::Result;
pub(crate) use forms::state_both_forms;
use keys::Keys;

/// A table of rotary angles: base, scaling, and the number of rotated columns per head.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Columns that are rotated in each head, counted from the first; an even number.
    pub rotated: usize,
    /// Base of the geometric series of angles.
    pub theta: f64,
    /// How angles are scaled for contexts longer than those of pre-training.
    pub scaling: RopeScaling,
    /// How what is rotated grows with its position. The queries of some models do.
    pub growth: Option<Growth>,
}

/// Scaling of the rotary angles. `original` stands for `original_max_position_embeddings`, the context length of
/// pre-training in tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Unscaled angles.
    None,
    /// Every position is divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// The scaling of Llama 3. Frequencies of long wavelengths are divided by `factor`, those of short wavelengths are
    /// kept, and those between are interpolated.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Frequencies with wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Frequencies with wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al., arXiv 2309.00071). Frequencies that turn often in the original context are kept, those that
    /// turn seldom are divided by `factor`, and those between are mixed by their index.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Frequencies with more turns than this in the original context are kept.
        beta_fast: f64,
        /// Frequencies with fewer turns than this in the original context are divided.
        beta_slow: f64,
        /// Factor of cosines and sines.
        attention_factor: f64,
        /// Whether the mixture starts and ends at whole indices.
        truncate: bool,
        /// Context length of pre-training.
        original_max_position_embeddings: usize,
    },
    /// LongRoPE (Ding et al., arXiv 2402.13753). Each frequency has two divisors: one for tables of up to `original`
    /// positions, and one for longer tables.
    LongRope {
        /// Divisors of the rotated/2 frequencies in short tables.
        short_factor: Vec<f64>,
        /// Divisors of the rotated/2 frequencies in long tables.
        long_factor: Vec<f64>,
        /// Factor of cosines and sines.
        attention_factor: f64,
        /// Context length of pre-training.
        original_max_position_embeddings: usize,
    },
    /// The form of Gemma 4. The series of angles runs over the whole head, but only the first part of it turns.
    Proportional {
        /// Columns that turn. The angles of the other rotated columns are zero.
        turning: usize,
        /// Divisor of all frequencies.
        factor: f64,
    },
}

/// Growth of the queries with their position p, as in Ministral 3 and Llama 4: a query is multiplied by
/// 1 + β·ln(1 + ⌊p / original⌋). Cosines and sines of the queries' table carry the factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Growth {
    /// β.
    pub beta: f64,
    /// The positions before this one have the factor 1.
    pub original_max_position_embeddings: usize,
}

/// What a family takes where its `config.json` says nothing, and the keys of its older files.
#[derive(Debug, Clone, Copy)]
pub(in crate::family) struct RopeDefaults {
    /// Base of the angles. `None`: the file must give it.
    pub theta: Option<f64>,
    /// Context length of pre-training. `None`: `max_position_embeddings`.
    pub original_max_position_embeddings: Option<usize>,
    /// Key of the base at the top level, if there is one.
    pub theta_key: Option<&'static str>,
    /// Key of the object with the scaling at the top level, if there is one.
    pub scaling_key: Option<&'static str>,
}

impl RopeDefaults {
    /// The defaults of most families.
    pub const PLAIN: Self = Self {
        theta: Some(10_000.0),
        original_max_position_embeddings: None,
        theta_key: Some("rope_theta"),
        scaling_key: Some("rope_scaling"),
    };
}

impl Rope {
    /// Reads the only table of a family with the usual defaults, as [`Rope::read_with`].
    pub(in crate::family) fn read(config: Fields<'_>, rotated: usize) -> Result<Self> {
        Self::read_with(config, rotated, &RopeDefaults::PLAIN)
    }

    /// Reads `rope_parameters` (the form of transformers 5), or `rope_theta` and `rope_scaling` (the older form), or
    /// both. `rotated`: rotated columns per head, from [`rotated_columns`] where a family rotates a part of each head.
    ///
    /// Errors: `Error::Input` if the two forms disagree, if the type of scaling is not supported, or if kinds of layers
    /// have tables of their own.
    pub(in crate::family) fn read_with(config: Fields<'_>, rotated: usize, defaults: &RopeDefaults) -> Result<Self> {
        Keys::of_all_layers(config, *defaults)?.rope(rotated)
    }

    /// Reads the table of one kind of layer, such as `sliding_attention`: the object of that name in
    /// `rope_parameters`, or the older keys that `defaults` names, or both. A family that reads its tables so has one
    /// table for each kind, even if they are alike.
    ///
    /// Errors: as [`Rope::read_with`], and if `rope_parameters` is one object for all layers.
    pub(in crate::family) fn read_kind(
        config: Fields<'_>,
        kind: &str,
        head_dim: usize,
        defaults: &RopeDefaults,
    ) -> Result<Self> {
        let keys = Keys::of_kind(config, kind, *defaults)?;
        keys.rope(keys.rotated(head_dim, 1.0)?)
    }
}

impl Growth {
    /// Reads `llama_4_scaling_beta` from `rope_parameters` or `rope_scaling`. `None` if the file does not have it, or if
    /// it is 0, with which nothing grows.
    pub(in crate::family) fn read(config: Fields<'_>) -> Result<Option<Self>> {
        let keys = Keys::of_all_layers(config, RopeDefaults::PLAIN)?;
        // A copy of the key at the top level.
        keys.inner().for_each(|fields| fields.pass_over(&["max_position_embeddings"]));
        let Some(beta) = keys.beta()?.filter(|&beta| beta > 0.0) else { return Ok(None) };
        let mut lengths = keys.inner().map(|fields| keys.original(fields));
        let growth = |length| Self { beta, original_max_position_embeddings: length };
        lengths.next().map(|length| length.map(growth)).transpose()
    }
}

/// Reads how many columns of each head are rotated, from `partial_rotary_factor`. It may stand at the top level, in
/// `rope_parameters` or in `rope_scaling`. `default_share`: the share where the file does not give one.
///
/// Errors: `Error::Input` if that is no even number of columns, or none.
pub(in crate::family) fn rotated_columns(config: Fields<'_>, head_dim: usize, default_share: f64) -> Result<usize> {
    Keys::of_all_layers(config, RopeDefaults::PLAIN)?.rotated(head_dim, default_share)
}

/// Refuses a model that rotates only a part of each head. Errors: `Error::Input`.
pub(in crate::family) fn require_whole_heads(config: Fields<'_>) -> Result<()> {
    match Keys::of_all_layers(config, RopeDefaults::PLAIN)?.share()? {
        None | Some(1.0) => Ok(()),
        Some(share) => Err(keys::share_refused(config, share, "rotary embedding of whole heads (1.0)")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const FULL: RopeDefaults = RopeDefaults { theta: Some(1e6), ..RopeDefaults::PLAIN };
    const SLIDING: RopeDefaults =
        RopeDefaults { theta_key: Some("rope_local_base_freq"), scaling_key: None, ..RopeDefaults::PLAIN };

    fn fields(config: &Value) -> Fields<'_> {
        Fields::new("config.json", config.as_object().unwrap())
    }

    /// The tables of full and sliding layers, whose heads are 16 wide.
    fn tables(config: &Value) -> Result<[Rope; 2]> {
        let read = |kind, defaults| Rope::read_kind(fields(config), kind, 16, defaults);
        Ok([read("full_attention", &FULL)?, read("sliding_attention", &SLIDING)?])
    }

    fn rope(theta: f64, scaling: RopeScaling) -> Rope {
        Rope { rotated: 16, theta, scaling, growth: None }
    }

    #[test]
    fn kinds_of_layers_read_alike_in_both_forms() {
        let old = json!({
            "rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        });
        let new = json!({"rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        }});
        let mut both = old.clone();
        both["rope_parameters"] = new["rope_parameters"].clone();
        let expected = [rope(5e5, RopeScaling::Linear { factor: 8.0 }), rope(2e4, RopeScaling::None)];
        for config in [&old, &new, &both] {
            assert_eq!(tables(config).unwrap(), expected, "{config}");
        }
        let defaults = [rope(1e6, RopeScaling::None), rope(1e4, RopeScaling::None)];
        assert_eq!(tables(&json!({})).unwrap(), defaults);
        let one = json!({"rope_parameters": {"full_attention": null, "sliding_attention": {"rope_type": "default"}}});
        assert_eq!(tables(&one).unwrap(), defaults);
        both["rope_local_base_freq"] = 3e4.into();
        assert!(tables(&both).unwrap_err().to_string().contains("30000.0 beside \"rope_theta\": 20000.0"));
        let flat = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}});
        assert!(tables(&flat).unwrap_err().to_string().contains("\"full_attention\" as an object"));
    }

    #[test]
    fn a_kind_of_layer_has_its_own_share_of_the_head() {
        let config = json!({"rope_parameters": {
            "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
            "sliding_attention": {"rope_type": "default", "partial_rotary_factor": 0.5},
        }});
        let [full, sliding] = tables(&config).unwrap();
        assert_eq!(full, rope(1e6, RopeScaling::Proportional { turning: 4, factor: 1.0 }));
        assert_eq!(sliding, Rope { rotated: 8, ..rope(1e4, RopeScaling::None) });
        let stated = RopeDefaults { theta: None, ..FULL };
        assert!(Rope::read_kind(fields(&json!({})), "full_attention", 16, &stated).is_err());
        assert_eq!(Rope::read_kind(fields(&config), "full_attention", 16, &stated).unwrap(), full);
    }

    #[test]
    fn growth_is_read_with_the_length_where_it_begins() {
        let read = |config: Value| Growth::read(fields(&config)).unwrap();
        assert_eq!(read(json!({"rope_parameters": {"rope_type": "default"}})), None);
        let inner = json!({"rope_type": "yarn", "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64});
        let expected = Some(Growth { beta: 0.1, original_max_position_embeddings: 64 });
        assert_eq!(read(json!({"rope_parameters": inner})), expected);
        assert_eq!(read(json!({"rope_scaling": inner})), expected);
        // A copy of a model that Aquatint writes has both.
        assert_eq!(read(json!({"rope_parameters": inner, "rope_scaling": inner})), expected);
        let other = json!({"rope_type": "yarn", "llama_4_scaling_beta": 0.2, "original_max_position_embeddings": 64});
        let both = json!({"rope_parameters": inner, "rope_scaling": other});
        assert!(Growth::read(fields(&both)).unwrap_err().to_string().contains("llama_4_scaling_beta"));
        // Devstral 2 123B.
        assert_eq!(read(json!({"rope_parameters": {"rope_type": "yarn", "llama_4_scaling_beta": 0.0}})), None);
    }
}
