// Every operator of the package: the schemas, and nothing else. Kernels register themselves under cpu/ and cuda/.
//
// A schema's types must be those of the C++ function to the letter (int = int64_t, float = double, bool = bool):
// nothing checks it, and a mismatch reads the wrong bytes.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(prunefuse, m) {
  // Utilities of each row of logits (N, C), higher = label first -> (K, N) for K strategies, in their order:
  // 0 least confidence 1 - p1, 1 margin 1 - (p1 - p2), 2 entropy in nats, 3 energy -T logsumexp(x / T), 4 margin of
  // logits x2 - x1.
  // float64 gives float64, every other floating type float32. A row with NaN, or without a value above -inf: NaN.
  // probabilities: the values are probabilities (rescaled to sum 1), not logits. temperature divides the logits.
  m.def("score(Tensor logits, int[] strategies, bool probabilities, float temperature) -> Tensor");

  // Utilities of groups of rows, each of score's utilities reduced over the rows of a group that count -> (K, G) for K
  // strategies. logits (G, R, C), or (B, C) with offsets (G + 1,) int64, rising from 0 to B, that say where groups
  // begin and end; on CUDA, where they are not looked at, they are held to [0, B]. mask (G, R) bool, or (M, R) for G /
  // M neighboring groups each: which rows count. reduction: 0 mean, 1 max, 2 sum, 3 share of rows above the threshold,
  // 4 how many are. empty: the result where no row counts. labels: C is 1, and x stands for the two logits (x, 0), or a
  // probability p for (p, 1 - p). NaN where a row that counts is.
  m.def(
      "score_groups(Tensor logits, Tensor? offsets, Tensor? mask, int[] strategies, int reduction, float threshold,"
      " float empty, bool labels, bool probabilities, float temperature) -> Tensor");

  // For rows whose logits come in pieces: merges logits (N, C') into the states (6, N) of the rows so far, in place. A
  // state is the largest logit, the runner-up, how many equal the largest, and sums over the others
  // (csrc/math/row_state.h); that of no logits at all is -inf, -inf, 0, 0, 0, 0. dtype: that of score's results.
  m.def("absorb_(Tensor(a!) state, Tensor logits, float temperature) -> ()");

  // Arg-max (int64, the lowest of equals, -1 for a NaN row), log-sum-exp of logits / temperature, and the two largest
  // probabilities of each row of logits (N, C) -> four tensors (N,).
  m.def(
      "statistics(Tensor logits, bool probabilities, float temperature)"
      " -> (Tensor argmax, Tensor logsumexp, Tensor p1, Tensor p2)");

  // Utilities of each row from S passes, logits (S, N, C) -> (K, N) for K strategies, in their order, with p the mean
  // of the passes' probabilities: 0 BALD H(p) - mean H(p_s), at least 0, 1 predictive entropy H(p), 2 variation ratio 1
  // - (votes of the modal class) / S, 3 mean entropy mean H(p_s); in nats. Result dtype, probabilities and temperature
  // as in score. A row that is NaN by score's rule in any pass: NaN.
  m.def("score_ensemble(Tensor logits, int[] strategies, bool probabilities, float temperature) -> Tensor");

  // Adds one pass, logits (N, C), to the sums of probabilities (N, C), the votes (N, C) int32 and the sums of entropies
  // (N,), all contiguous, in place; sums and entropies are of score's result dtype. A row without a distribution: NaN.
  m.def(
      "ensemble_add_(Tensor(a!) sums, Tensor(b!) votes, Tensor(c!) entropies, Tensor logits, bool probabilities,"
      " float temperature) -> ()");

  // The b largest of utilities (N,), sorted downwards, equals by lower index, NaN left out
  // -> indices (b,) int64, utilities (b,). Where fewer than b can be selected: index -1 and NaN at the end.
  m.def("top_b(Tensor utilities, int b) -> (Tensor indices, Tensor utilities)");

  // Takes a batch of a stream of utilities (N,), and forgets what can no longer be among the b best: in O(b) memory, in
  // place, all contiguous and of one float type. best and indices (M,), M >= b + 2048: the candidates, in no order.
  // threshold (1,): -inf at first; as soon as it rises, b candidates are at least so useful. counts (3,) int64, at
  // first 0, 0, -1: candidates, NaN seen, highest index seen. batch_indices: of the batch's rows; none: on from the
  // highest.
  m.def(
      "keep_best_(Tensor(a!) best, Tensor(b!) indices, Tensor(c!) threshold, Tensor(d!) counts, int b, Tensor batch,"
      " Tensor? batch_indices) -> ()");

  // Greedy k-center (Gonzalez 1985) on features (N, d): each pick is the row farthest, in Euclidean distance, from all
  // labeled and picked rows; the lower index on ties; rows whose squared norm is not finite are left out.
  // labeled (L,) int64; start: the first pick, or -1 where L > 0 -> (b,) int64 in pick order, -1 at the end where rows
  // run out. CUDA does not read labeled on the host: what is out of range there is left out.
  // weights (N,), of features' dtype: what each row's squared distances are multiplied by before they are compared with
  // other rows'. Rows whose weight is not a finite number from 0 on are left out. least: rows whose squared distance to
  // a labeled or picked row, without weights, is below it are not picked; start is not held to it.
  m.def(
      "k_center_greedy(Tensor features, Tensor labeled, int b, int start, Tensor? weights=None, float least=0.0)"
      " -> Tensor");

  // k-means++ seeding (Arthur and Vassilvitskii 2007) on embeddings r x h, the outer products of rows r of residuals
  // (N, C) and h of features (N, d), which are never formed. The first pick is the row with the largest embedding, the
  // lower of equals; each later one is drawn with probability proportional to the squared distance from the nearest
  // pick, all alike where that is 0 everywhere. draws (b,) float64 in [0, 1): the row drawn is the first at which the
  // sum of those, in order, exceeds draws[i] times the total; draws[0] is not used. Rows whose |r|^2 or |h|^2 is not
  // below 2^124 (float64: 2^490) are left out -> (b,) int64 in pick order, -1 at the end where rows run out.
  // weights (N,) float64: squared distances are multiplied by them, and the first pick is drawn by them, with draws[0].
  // Rows whose weight is not a finite number from 0 on are left out.
  m.def("k_means_plus_plus(Tensor residuals, Tensor features, Tensor draws, Tensor? weights=None) -> Tensor");

  // The k references (M, d) nearest to each query (N, d), by Euclidean distance or 1 - cosine similarity (1 where a row
  // is all zeros), exactly: ascending, equals by lower index -> distances (N, k), of score's result dtype, indices (N,
  // k). Values must be finite. scale, a power of two: what to multiply all of them by so that squares stay in range.
  // input_roundoff: unit roundoff of the inputs of torch's matrix product, where it may be coarser than that of the
  // dtype. CUDA does not ask: what it multiplies is not rounded by any setting.
  m.def(
      "nearest_neighbors(Tensor queries, Tensor references, int k, bool cosine, float scale, float input_roundoff)"
      " -> (Tensor distances, Tensor indices)");

  // What each row of logits (N, C) says of its label (N,), from one read -> (6, N): probability of the label, 1 - that,
  // loss -log probability, margin x_label - largest other x, EL2N ||softmax - onehot||, and 1 where the label has the
  // largest logit (the lowest class of equals), else 0. Result dtype and NaN rows as in score. A label that is no
  // class: an error, on CUDA NaN.
  m.def("dynamics(Tensor logits, Tensor labels) -> Tensor");

  // Opens a batch of an epoch: marks indices (B,) in seen (N,) int32, and returns them (B,). An index out of range or
  // seen before, or a label (B,) that is none of so many classes: an error, and nothing is written; on CUDA, where an
  // error would wait for the device, that row is left out: -1 in the result, and 1 more in rejected (1,) int64.
  m.def("claim_(Tensor(a!) seen, Tensor(b!) rejected, Tensor indices, Tensor? labels, int classes) -> Tensor");

  // How far the softmax q of each row of logits (B, C) is from that of its sample's row before: sum |q (log(q +
  // epsilon)
  // - log(q_before + epsilon))| -> (B,) float64. kept (N, C), of any floating type: those logarithms, 1 where there are
  // none yet, replaced in place. samples (B,), all different, -1 = left out. -1 where a row is left out or the first of
  // its sample; NaN where either row has no distribution. float64 in either: computed in float64, else in float32.
  m.def("divergence_(Tensor(a!) kept, Tensor logits, Tensor samples, float epsilon) -> Tensor");

  // Appends values (B,) to their samples' rings (N, R), and takes the window of so many values that ended R - window
  // values ago, if it is full, into sums (2, N): sum = keep * sum + gain * v, with v the spread
  // sqrt(sum (x - mean)^2 / divisor) and spread * (1 - mean). counts (N,) int64: values so far. All float64 otherwise.
  // samples (B,), all different, -1 = left out.
  m.def(
      "push_(Tensor(a!) ring, Tensor(b!) counts, Tensor(c!) sums, Tensor values, Tensor samples, int window,"
      " float divisor, float keep, float gain) -> ()");

  // dense[i][kept of axis 0, kept of axis 1, ...] = small[i] for every i at once, in place.
  // kept: index tensors (int64, sorted); kept_of_axis: for every axis of every tensor in turn, its position in `kept`,
  // or -1 for the whole axis.
  m.def("scatter_(Tensor(a!)[] dense, Tensor[] small, Tensor[] kept, int[] kept_of_axis) -> ()");
}
