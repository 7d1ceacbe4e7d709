//! The rules that cut a text into words before bytes are merged, by their names in llama.cpp.
//!
//! The converter of llama.cpp knows a tokenizer by the hash of the ids that it gives for a fixed text. This works for
//! the vocabularies in its list and no others. Here a rule is known by what it does: the regular expressions in
//! `tokenizer.json`, which are also what llama.cpp implements under each name. A model with a vocabulary of its own is
//! then written correctly, and a rule that llama.cpp lacks is refused.
//!
//! A file that is read gets the rule of the models, too. llama.cpp follows it with a few simplifications: under
//! "gpt-4o" and "tekken" it treats marks such as the vowel signs of Hindi as no letters, under "tiny_aya" it groups
//! the digits beside letters in another way, and under "deepseek-llm" and "falcon" it does not separate digits. The
//! vocabularies of the last two have no tokens for which that matters.

use serde_json::{Value, json};

/// The rule of GPT-2, which the library calls `ByteLevel`.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// The rule of cl100k, with up to three digits in one word.
const THREE_DIGITS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// The same with single digits.
const ONE_DIGIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// The same with numbers of any length.
const ANY_DIGITS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// The same with single digits, and with marks as parts of words.
const MARKS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// The rule of o200k, in which a capital begins a new word.
const CAPITALS: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// The same without contractions and with single digits.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const SEED: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}",
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const BAILING: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);
const DEEPSEEK: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const BLOOM: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";
/// Letters that have a case, as a list.
const LETTERS_WITH_CASE: &str = concat!(
    r"\s?[",
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛ",
    "ὝὟ-\u{1F7D}ᾀ-ᾴᾶ-ᾼ\u{1FBE}ῂ-ῄῆ-ῌῐ-\u{1FD3}ῖ-\u{1FDB}ῠ-Ῥῲ-ῴῶ-ῼ",
    "ℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗ",
    "Ａ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃",
    "]+"
);
const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";
const GROUPS: &str = r"\p{N}{1,3}";
/// What the library's `Punctuation` finds: punctuation of Unicode, and all ASCII signs.
const PUNCTUATION: &str = r"[\p{P}$+<=>^`|~]+";
const LINE_END: &str = r"[\r\n]";
const HAN: &str = "[一-龥ࠀ-一가-퟿]+";
const HAN_AND_KANA: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";

/// A rule that llama.cpp implements.
pub(super) struct Rule {
    /// The values of `tokenizer.ggml.pre` that llama.cpp treats in this way. The first of them is written.
    names: &'static [&'static str],
    /// Whether a word that is a token stays whole, whatever the merges make of it.
    pub ignore_merges: bool,
    /// Whether the first token is that for the beginning, in a file that does not say so.
    pub adds_bos: bool,
    /// Regular expressions. Each cuts the pieces of the one before, and every match is a piece.
    steps: &'static [&'static str],
}

impl Rule {
    const fn new(names: &'static [&'static str], steps: &'static [&'static str]) -> Self {
        Self { names, ignore_merges: false, adds_bos: false, steps }
    }

    /// This rule with whole words.
    const fn whole_words(self) -> Self {
        Self { ignore_merges: true, ..self }
    }

    /// This rule with a token for the beginning.
    const fn with_bos(self) -> Self {
        Self { adds_bos: true, ..self }
    }

    /// The name to write.
    pub fn name(&self) -> &'static str {
        self.names[0]
    }

    /// The rule as the `pre_tokenizer` of a `tokenizer.json`.
    pub fn pre_tokenizer(&self) -> Value {
        let mut steps: Vec<Value> = self.steps.iter().map(|regex| split(regex)).collect();
        steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}));
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

/// The step of a `pre_tokenizer` that makes a piece of every match of an expression.
pub(super) fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

/// All rules. Names that differ only in how llama.cpp joins tokens to text share a row.
static RULES: [Rule; 18] = [
    Rule::new(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
        ],
        &[WORDS],
    ),
    Rule::new(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, WORDS],
    ),
    Rule::new(
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        &[THREE_DIGITS],
    )
    .whole_words()
    .with_bos(),
    Rule::new(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], &[THREE_DIGITS]),
    Rule::new(
        &["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "grok-2", "solar-open", "kormo", "f2llmv2"],
        &[ONE_DIGIT],
    ),
    Rule::new(&["qwen35"], &[MARKS]),
    Rule::new(&["gpt-4o", "llama4", "kanana2", "minimax-m2"], &[CAPITALS]),
    Rule::new(&["tiny_aya", "cohere2moe"], &[r"\d{1,3}(?=(?:\d{3})*\b)", CAPITALS]),
    Rule::new(&["tekken"], &[TEKKEN]).whole_words().with_bos(),
    Rule::new(&["seed-coder"], &[SEED]),
    Rule::new(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    Rule::new(&["minicpm5"], &[GROUPS, ANY_DIGITS]).whole_words(),
    Rule::new(&["deepseek-v3", "hunyuan-dense", "joyai-llm"], &[GROUPS, HAN_AND_KANA, DEEPSEEK]),
    Rule::new(&["deepseek-coder"], &[LINE_END, r"\s?\p{L}+", r"\s?\p{P}+", HAN, DIGIT]),
    Rule::new(
        &["deepseek-llm"],
        &[LINE_END, LETTERS_WITH_CASE, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", HAN, DIGIT],
    ),
    Rule::new(&["falcon"], &[PUNCTUATION, WORDS, DIGITS, "[0-9][0-9][0-9]"]),
    Rule::new(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]),
    Rule::new(&["viking"], &[BLOOM, DIGIT]),
];

/// The rule that llama.cpp calls `name`.
pub(super) fn named(name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.names.contains(&name))
}

/// The rule of a `tokenizer.json` with this `pre_tokenizer` and this value of `ignore_merges`. `None` if llama.cpp has
/// no such rule.
pub(super) fn of(pre_tokenizer: &Value, ignore_merges: bool) -> Option<&'static Rule> {
    let steps = steps(pre_tokenizer)?;
    RULES.iter().find(|rule| rule.ignore_merges == ignore_merges && steps == rule.steps)
}

/// Whether a `pre_tokenizer` turns text into bytes.
pub(super) fn is_of_bytes(pre_tokenizer: &Value) -> bool {
    let parts = pre_tokenizer["pretokenizers"].as_array();
    pre_tokenizer["type"] == "ByteLevel" || parts.is_some_and(|parts| parts.iter().any(is_of_bytes))
}

/// The regular expressions of a `pre_tokenizer`, or `None` if it does anything else.
fn steps(part: &Value) -> Option<Vec<String>> {
    let step = |regex: &str| Some(vec![regex.to_owned()]);
    match part["type"].as_str()? {
        "Sequence" => {
            let parts: Option<Vec<_>> = part["pretokenizers"].as_array()?.iter().map(steps).collect();
            Some(parts?.concat())
        }
        "ByteLevel" if part["add_prefix_space"] != false => None,
        "ByteLevel" if part["use_regex"] == false => Some(Vec::new()),
        "ByteLevel" => step(WORDS),
        "Digits" if part["individual_digits"] == true => step(DIGIT),
        "Digits" => step(DIGITS),
        "Punctuation" if part["behavior"] == "Contiguous" => step(PUNCTUATION),
        "Split" => {
            // The expressions that are written the second way match every character, so that nothing is removed.
            let behaviors = [("Isolated", false), ("Removed", true)];
            let known = |&(name, invert): &(&str, bool)| part["behavior"] == name && part["invert"] == invert;
            behaviors.iter().find(|behavior| known(behavior))?;
            // Some files have the line ends themselves in an expression.
            let regex = part["pattern"]["Regex"].as_str()?;
            Some(vec![regex.replace('\r', r"\r").replace('\n', r"\n")])
        }
        _ => None,
    }
}
