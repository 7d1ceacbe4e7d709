//! Measures each kernel at the shapes of SmolLM2-135M: `cargo bench --bench kernels -- --device NAME`.
//!
//! Rates are compared with the machine's limits, which are measured first in the same run: a large matrix product for arithmetic,
//! and a large copy for traffic. Traffic counts each operand once. A small operand may stay in a cache, so more than 100 % of the
//! copy rate is possible. A grid search is limited by neither, so its rate is in weights per second.

mod support;

use std::process::ExitCode;

use aquatint::Result;
use aquatint::device::{Precision, Recorder, Tensor};
use aquatint::engine::rope::table;
use aquatint::family::{Rope, RopeScaling};
use aquatint::ops::Positions;
use aquatint::ops::activate::{self, Activation};
use aquatint::ops::add::add_assign;
use aquatint::ops::attention::{Heads, attention};
use aquatint::ops::cholesky;
use aquatint::ops::embedding::gather;
use aquatint::ops::gram::{self, Packed};
use aquatint::ops::grid::{self, GridSpec, ScaleType, Search, Symmetry};
use aquatint::ops::matmul::{Orientation, matmul};
use aquatint::ops::nll;
use aquatint::ops::rms_norm::rms_norm;
use aquatint::ops::rope::{Pairs, rope};
use aquatint::ops::rtn;
use aquatint::ops::solve::solve_rows;
use aquatint::quant::methods::{GroupInput, Layer, ScaleSearch};
use aquatint::quant::{Curvature, HessianDiagonal, QuantizeOptions};
use clap::Parser;
use pollster::block_on;
use support::{Table, duration, percent, tensor};

/// SmolLM2-135M: width of the hidden state.
const HIDDEN: usize = 576;
/// Width of the MLP.
const INNER: usize = 1536;
/// Columns of k and of v.
const KV: usize = 192;
/// Columns per head.
const HEAD_DIM: usize = 64;
/// Bits of a code.
const BITS: u32 = 3;

/// Measures every kernel on one device.
#[derive(Debug, Parser)]
struct Arguments {
    /// cpu, gpu, or a number or name that `aquatint devices` lists
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Kernels of large products: fast, where the device has them, or portable
    #[arg(long, default_value = "fast")]
    precision: Precision,
    /// Fewer tokens and a smaller square, for software adapters
    #[arg(long)]
    quick: bool,
    /// Passed by cargo, means nothing
    #[arg(long, hide = true)]
    bench: bool,
}

/// The work of one call of a kernel.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// Floating-point operations.
    Flops(f64),
    /// Bytes that must be read or written.
    Bytes(f64),
    /// Weights that are processed.
    Weights(f64),
}

/// The state of a run of this bench.
struct Bench {
    rec: Recorder,
    table: Table<5>,
    flops_limit: f64,
    bytes_limit: f64,
    /// Tokens of one call.
    tokens: usize,
    /// Rows and columns of the larger square shape.
    square: usize,
}

fn main() -> ExitCode {
    support::exit(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut rec = Recorder::new(&support::open(&arguments.device, arguments.precision)?);
    let flops_limit = support::matmul_limit(&mut rec, arguments.quick)?;
    let bytes_limit = support::copy_limit(&mut rec, arguments.quick)?;
    rec.trim();
    println!("Limits: matmul {:.1} GFLOP/s, copy {:.1} GB/s\n", flops_limit / 1e9, bytes_limit / 1e9);
    let (tokens, square) = if arguments.quick { (512, 512) } else { (4096, 2048) };
    let table = Table::new(["kernel", "shape", "time", "rate", "of limit"], 2);
    let mut bench = Bench { rec, table, flops_limit, bytes_limit, tokens, square };
    bench.products()?;
    bench.statistics()?;
    bench.factorisations()?;
    bench.rounding()?;
    bench.block()?;
    bench.network_ends()?;
    bench.table.print();
    if bench.rec.device().precision() == Precision::Fast {
        println!(
            "\nThe same by both tiers; errors are those of {SAMPLES} × {SAMPLES} elements against f64, relative to the norms of row and column\n"
        );
        bench.tiers()?.print();
    }
    Ok(())
}

/// The number of rows and of columns of a product whose elements are compared with f64.
const SAMPLES: usize = 32;

/// Returns the bytes of `elements` numbers of 32 bits.
fn bytes(elements: usize) -> Work {
    Work::Bytes(4.0 * elements as f64)
}

impl Bench {
    /// Times `op` and adds a row to the table.
    fn measure(
        &mut self,
        kernel: &str,
        shape: String,
        work: Work,
        op: impl FnMut(&mut Recorder) -> Result<()>,
    ) -> Result<()> {
        eprintln!("{kernel} {shape}");
        let seconds = support::seconds(&mut self.rec, op)?;
        let (rate, share) = match work {
            Work::Flops(flops) => (format!("{:.1} GFLOP/s", flops / seconds / 1e9), Some(flops / self.flops_limit)),
            Work::Bytes(bytes) => (format!("{:.1} GB/s", bytes / seconds / 1e9), Some(bytes / self.bytes_limit)),
            Work::Weights(weights) => (format!("{:.1} Mweights/s", weights / seconds / 1e6), None),
        };
        let share = share.map_or_else(|| "–".to_string(), |least| percent(least / seconds));
        self.table.row([kernel.to_string(), shape, duration(seconds), rate, share]);
        Ok(())
    }

    /// Matrix products in the three orientations: forward, `W·D`, and the outer products of the GPTQ loop.
    fn products(&mut self) -> Result<()> {
        let (tokens, square) = (self.tokens, self.square);
        let cases = [
            ("matmul nt", Orientation::Nt, [tokens, INNER, HIDDEN]),
            ("matmul nt", Orientation::Nt, [tokens, HIDDEN, INNER]),
            ("matmul nt", Orientation::Nt, [tokens, HIDDEN, HIDDEN]),
            ("matmul nt", Orientation::Nt, [square; 3]),
            ("matmul nn", Orientation::Nn, [INNER, HIDDEN, HIDDEN]),
            ("matmul nn", Orientation::Nn, [HIDDEN, INNER, INNER]),
            ("matmul nn", Orientation::Nn, [square; 3]),
            ("matmul tn", Orientation::Tn, [HIDDEN, HIDDEN, tokens]),
            ("matmul tn", Orientation::Tn, [INNER, INNER, tokens]),
            ("matmul tn", Orientation::Tn, [square; 3]),
        ];
        for (kernel, orientation, [m, n, k]) in cases {
            let (a, b) = match orientation {
                Orientation::Nt => ([m, k], [n, k]),
                Orientation::Nn => ([m, k], [k, n]),
                Orientation::Tn => ([k, m], [k, n]),
            };
            let (a, b) = (tensor(&mut self.rec, &a, 1.0)?, tensor(&mut self.rec, &b, 1.0)?);
            let work = Work::Flops(2.0 * (m * n * k) as f64);
            let shape = format!("m {m}, n {n}, k {k}");
            self.measure(kernel, shape, work, |rec| matmul(rec, orientation, &a, &b).map(drop))?;
        }
        Ok(())
    }

    /// The sums H and D. H is symmetric, so half of its products are not computed.
    fn statistics(&mut self) -> Result<()> {
        for (tokens, n) in [(self.tokens, HIDDEN), (self.tokens, INNER), (self.square, self.square)] {
            let x = tensor(&mut self.rec, &[tokens, n], 1.0)?;
            let x_hat = tensor(&mut self.rec, &[tokens, n], 0.9)?;
            let mut h = Packed::zeros(&mut self.rec, n)?;
            let mut d = self.rec.zeros(&[n, n])?;
            let (shape, products) = (format!("T {tokens}, n {n}"), (n * n * tokens) as f64);
            let work = Work::Flops(products);
            self.measure("gram accumulate", shape.clone(), work, |rec| gram::accumulate(rec, &x, &mut h))?;
            self.measure("gram cross", shape, Work::Flops(2.0 * products), |rec| {
                gram::cross(rec, &x, &x_hat, 0, &mut d)
            })?;
        }
        Ok(())
    }

    /// Compares the fast kernels with the portable ones, for products, cross terms and Gram matrices.
    fn tiers(&mut self) -> Result<Table<6>> {
        let headings = ["kernel", "shape", "portable", "fast", "error, portable", "error, fast"];
        let mut table = Table::new(headings, 2);
        let (tokens, square) = (self.tokens, self.square);
        let shapes = [[tokens, INNER, HIDDEN], [tokens, HIDDEN, INNER], [square; 3]];
        for kernel in ["matmul nt", "gram cross", "gram accumulate"] {
            for [m, n, k] in shapes {
                // The sums over tokens are n × n.
                let [m, n, k] = if kernel == "matmul nt" { [m, n, k] } else { [n, n, m] };
                let (shape, flops) = (format!("m {m}, n {n}, k {k}"), 2.0 * (m * n * k) as f64);
                let flops = if kernel == "gram accumulate" { flops / 2.0 } else { flops };
                let (mut rates, mut errors) = (Vec::new(), Vec::new());
                for least in [usize::MAX, 0] {
                    self.rec.set_fast_from(least);
                    eprintln!("{kernel} {shape}");
                    let (seconds, error) = self.tier(kernel, [m, n, k])?;
                    rates.push(format!("{:.1} GFLOP/s", flops / seconds / 1e9));
                    errors.push(format!("{error:.1e}"));
                }
                let [portable, fast] = rates.try_into().expect("two tiers");
                let [error, fast_error] = errors.try_into().expect("two tiers");
                table.row([kernel.to_string(), shape, portable, fast, error, fast_error]);
            }
        }
        Ok(table)
    }

    /// Returns the seconds of one such product and its largest error.
    fn tier(&mut self, kernel: &str, [m, n, k]: [usize; 3]) -> Result<(f64, f64)> {
        let along_depth = kernel == "matmul nt";
        let shapes = if along_depth { [[m, k], [n, k]] } else { [[k, m], [k, n]] };
        let [va, vb] = shapes.map(|[rows, columns]| support::random(rows as u64, rows * columns, 1.0));
        let vb = if along_depth { vb } else { va.iter().zip(&vb).map(|(a, b)| 0.9 * a + 0.01 * b).collect() };
        let a = self.rec.upload(&shapes[0], va.clone())?;
        let b = self.rec.upload(&shapes[1], vb.clone())?;
        let rec = &mut self.rec;
        let seconds = match kernel {
            "matmul nt" => support::seconds(rec, |rec| matmul(rec, Orientation::Nt, &a, &b).map(drop))?,
            "gram cross" => {
                let mut d = rec.zeros(&[n, n])?;
                support::seconds(rec, |rec| gram::cross(rec, &a, &b, 0, &mut d))?
            }
            _ => {
                let mut h = Packed::zeros(rec, n)?;
                support::seconds(rec, |rec| gram::accumulate(rec, &a, &mut h))?
            }
        };
        let mut d = rec.zeros(&[n, n])?;
        let c = match kernel {
            "matmul nt" => matmul(rec, Orientation::Nt, &a, &b)?,
            "gram cross" => {
                gram::cross(rec, &a, &b, 0, &mut d)?;
                d
            }
            _ => {
                let mut h = Packed::zeros(rec, n)?;
                gram::accumulate(rec, &a, &mut h)?;
                gram::unpack(rec, &h)?
            }
        };
        let c = block_on(rec.read(&c))?;
        let value = |v: &[f32], index: usize, depth: usize, rows: usize| {
            v[if along_depth { index * k + depth } else { depth * rows + index }]
        };
        let left = |row: usize, depth: usize| match kernel {
            "gram cross" => f64::from(value(&va, row, depth, m) - value(&vb, row, depth, m)),
            _ => f64::from(value(&va, row, depth, m)),
        };
        let right = |column: usize, depth: usize| match kernel {
            "gram accumulate" => f64::from(value(&va, column, depth, n)),
            _ => f64::from(value(&vb, column, depth, n)),
        };
        let mut worst = 0.0f64;
        for row in (0..m).step_by(m.div_ceil(SAMPLES)) {
            for column in (0..n).step_by(n.div_ceil(SAMPLES)) {
                let [mut product, mut of_row, mut of_column] = [0.0; 3];
                for depth in 0..k {
                    let (p, q) = (left(row, depth), right(column, depth));
                    product += p * q;
                    of_row += p * p;
                    of_column += q * q;
                }
                let error = (f64::from(c[row * n + column]) - product).abs() / (of_row * of_column).sqrt();
                worst = worst.max(error);
            }
        }
        Ok((seconds, worst))
    }

    /// The Cholesky factor of a damped Hessian, and the solves with it.
    fn factorisations(&mut self) -> Result<()> {
        for n in [HIDDEN, INNER, self.square] {
            // The damped matrix is near the identity, so that repeated solves neither grow nor vanish.
            let h = hessian(&mut self.rec, n, 1e-3)?;
            let order: Vec<u32> = (0..n as u32).collect();
            let cube = (n * n * n) as f64;
            self.measure("cholesky factor", format!("n {n}"), Work::Flops(cube / 3.0), |rec| {
                block_on(cholesky::factor(rec, &h, &order, 1.0)).map(drop)
            })?;
            let factor = block_on(cholesky::factor(&mut self.rec, &h, &order, 1.0))?.expect("a positive matrix");
            let rows = if n == HIDDEN { INNER } else { HIDDEN };
            let mut b = Some(tensor(&mut self.rec, &[rows, n], 1.0)?);
            let work = Work::Flops(2.0 * (rows * n * n) as f64);
            self.measure("solve", format!("m {rows}, n {n}"), work, |rec| {
                b = Some(solve_rows(rec, &factor, b.take().expect("put back by the call before"))?);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Grid searches, RTN, and GPTQ. GPTQ uses min–max grids, so that its time is that of the column loop.
    fn rounding(&mut self) -> Result<()> {
        for [m, n] in [[INNER, HIDDEN], [HIDDEN, INNER]] {
            let w = tensor(&mut self.rec, &[m, n], 1.0)?;
            let shape = format!("m {m}, n {n}");
            for (search, word) in [(Search::MinMax, "minmax"), (Search::Mse, "mse")] {
                for (group_size, place) in [(n, "per channel"), (32, "group 32")] {
                    let (spec, work) = (spec(group_size), Work::Weights((m * n) as f64));
                    let kernel = format!("grid {word}");
                    self.measure(&kernel, format!("{shape}, {place}"), work, |rec| {
                        grid::search(rec, &w, None, &spec, search).map(drop)
                    })?;
                }
            }
            let grid = spec(n);
            let per_channel = grid::search(&mut self.rec, &w, None, &grid, Search::MinMax)?;
            // Reads weights, writes codes and values.
            let traffic = bytes(3 * m * n);
            self.measure("rtn", shape.clone(), traffic, |rec| rtn::round(rec, &w, &per_channel, &grid).map(drop))?;
            let options = gptq_options();
            let h = hessian(&mut self.rec, n, 1.0)?;
            let diagonal = block_on(HessianDiagonal::of(&mut self.rec, &h, "bench"))?;
            let curvature = Curvature { hessian: &h, diagonal: &diagonal, place: "bench" };
            let input = GroupInput { options: &options, curvature: Some(curvature), magnitudes: None };
            let gptq = options.method.quantizer();
            let rounder = block_on(gptq.prepare(&mut self.rec, input, ScaleSearch::default()))?;
            let layer = Layer { name: "bench", grid };
            // One multiplication and one addition for each row and each pair of columns.
            let work = Work::Flops((m * n * n) as f64);
            self.measure("gptq", shape, work, |rec| block_on(rounder.round(rec, layer, &w)).map(drop))?;
        }
        Ok(())
    }

    /// The operations of a block other than its matrix products.
    fn block(&mut self) -> Result<()> {
        let tokens = self.tokens;
        let mut x = tensor(&mut self.rec, &[tokens, HIDDEN], 1.0)?;
        let weight = tensor(&mut self.rec, &[HIDDEN], 1.0)?;
        let shape = format!("T {tokens}, {HIDDEN}");
        let traffic = bytes(2 * x.len());
        self.measure("rms_norm", shape.clone(), traffic, |rec| rms_norm(rec, &x, &weight, 1e-5).map(drop))?;
        let positions = 2048.min(tokens);
        let plain = Rope { rotated: HEAD_DIM, theta: 100_000.0, scaling: RopeScaling::None, growth: None };
        let angles = table(&plain, positions);
        let angles = self.rec.upload(&[positions, HEAD_DIM], angles)?;
        self.measure("rope", shape.clone(), traffic, |rec| {
            rope(rec, &mut x, &angles, HEAD_DIM, Pairs::Halves, Positions::whole(positions))
        })?;
        let (k, v) = (tensor(&mut self.rec, &[tokens, KV], 1.0)?, tensor(&mut self.rec, &[tokens, KV], 1.0)?);
        for seq_len in [512, 2048].into_iter().filter(|&seq_len| seq_len <= tokens) {
            let heads = HIDDEN / HEAD_DIM;
            let causal = Heads {
                heads,
                kv_heads: KV / HEAD_DIM,
                head_dim: HEAD_DIM,
                window: None,
                scale: 1.0 / (HEAD_DIM as f32).sqrt(),
                softcap: None,
                alibi: None,
            };
            // q·k and the sum over v, for each pair of a query and a visible key.
            let pairs = tokens * (seq_len + 1) / 2;
            let work = Work::Flops(4.0 * (heads * HEAD_DIM * pairs) as f64);
            let shape = format!("T {tokens}, 9/3 heads of 64, length {seq_len}");
            let positions = Positions::whole(seq_len);
            self.measure("attention", shape, work, |rec| attention(rec, &x, &k, &v, causal, positions).map(drop))?;
        }
        let y = tensor(&mut self.rec, &[tokens, HIDDEN], 1e-3)?;
        let traffic = bytes(3 * x.len());
        self.measure("add", shape, traffic, |rec| add_assign(rec, &mut x, &y))?;
        let gate = tensor(&mut self.rec, &[tokens, INNER], 1.0)?;
        let up = tensor(&mut self.rec, &[tokens, INNER], 0.9)?;
        let traffic = bytes(3 * gate.len());
        let shape = format!("T {tokens}, {INNER}");
        self.measure("silu_gate", shape, traffic, |rec| activate::gate(rec, Activation::Silu, &gate, &up).map(drop))
    }

    /// The embedding, and the log-likelihoods over a slab of the vocabulary.
    fn network_ends(&mut self) -> Result<()> {
        let (tokens, rows) = (self.tokens, 2 * self.tokens);
        let ids = (0..tokens).map(|token| (token * 7919 % rows) as u32).collect();
        let ids: Tensor<u32> = self.rec.upload(&[tokens], ids)?;
        let embedding = tensor(&mut self.rec, &[rows, HIDDEN], 1.0)?;
        let mut out = self.rec.zeros(&[tokens, HIDDEN])?;
        let shape = format!("T {tokens}, {HIDDEN} of {rows} rows");
        let traffic = bytes(2 * out.len());
        self.measure("gather", shape, traffic, |rec| gather(rec, &embedding, 0, &ids, &mut out))?;
        let logits = tensor(&mut self.rec, &[tokens, rows], 10.0)?;
        let mut state = nll::start(&mut self.rec, tokens)?;
        let shape = format!("T {tokens}, {rows} entries");
        let traffic = bytes(logits.len());
        self.measure("nll", shape, traffic, |rec| nll::accumulate(rec, &logits, 0, &ids, &mut state))
    }
}

/// Returns XᵀX of 2n random tokens. Its diagonal is about `scale`.
fn hessian(rec: &mut Recorder, n: usize, scale: f32) -> Result<Packed> {
    let tokens = 2 * n;
    let x = tensor(rec, &[tokens, n], (3.0 * scale / tokens as f32).sqrt())?;
    let mut h = Packed::zeros(rec, n)?;
    gram::accumulate(rec, &x, &mut h)?;
    Ok(h)
}

/// Returns an asymmetric grid whose scales have the type of a checkpoint's.
fn spec(group_size: usize) -> GridSpec {
    GridSpec::new(BITS, group_size, Symmetry::Asymmetric, ScaleType::F16)
}

fn gptq_options() -> QuantizeOptions {
    QuantizeOptions { bits: BITS, grid: Search::MinMax, ..QuantizeOptions::default() }
}
