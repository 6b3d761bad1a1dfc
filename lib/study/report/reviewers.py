"""What the paper's reviewers asked and doubted, in our words, and what answers it.

Answers name their numbers in braces (`Facts.fill`); none is typed.
"""

from dataclasses import dataclass

CONTEST = "[leaderboard](contest-third.md), [pictures](README.md)"
CLAIMS = "[claims](claims.md)"
ABLATIONS = "[ablations](ablations.md)"
SUBLAYERS = "[test_sublayers.py](../tests/test_sublayers.py)"
ATTENTION = "[test_attention.py](../tests/test_attention.py)"
MERGING = "[test_merging.py](../tests/test_merging.py)"


@dataclass(frozen=True)
class Doubt:
    """One question or doubt.

    Attributes:
        by: the reviewers who have it, in the order of the reviews.
        question: in one line.
        answer: in a sentence or two, with fields for `Facts.fill`.
        backed: the rows, figures or tests behind it, as links.
    """

    by: str
    question: str
    answer: str
    backed: str


DOUBTS = (
    Doubt(
        "1, 2, 4",
        "It saves memory and no computation: what speed?",
        "True. With a third of the FF sublayers shared away {flops[permute, third]} of the FLOPs "
        "per token remain; with as many parameters pruned as neurons {flops[neurons_obs_refit, "
        "third]}. Measured side by side, a "
        "tied model runs within a few percent of the same model untied, either way, and pruned "
        "ones are up to a fifth faster, or no faster where FFs are a small part of the time.",
        f"{CONTEST}; {CLAIMS}: FLOPs fall only where something is removed; "
        "[latency](../results/benchmarks/latency.csv), "
        "[memory and throughput](../results/benchmarks/runtime.csv)",
    ),
    Doubt(
        "1, 2, 3, 4",
        "Is it better than pruning at the same number of parameters?",
        "That it is no worse than pruning neurons, before tuning: {verdict[merging ≥ pruning "
        "neurons, at equal parameters, before tuning]}; after: {verdict[merging ≥ pruning neurons, "
        "at equal parameters, after tuning]}. A third removed, not tuned: permute keeps "
        "{kept[permute, third, untuned]}, OBS {kept[neurons_obs_refit, third, untuned]}.",
        f"{CONTEST}; {CLAIMS}",
    ),
    Doubt(
        "4",
        "It needs fine-tuning, and others do not?",
        "Pruning by OBS needs none; a third removed, it leads permute by {lead[neurons_obs_refit, "
        "permute, third, untuned]} before tuning. That merging with tuning is no worse than it: "
        "{verdict[merging with tuning ≥ pruning neurons without any]}.",
        f"{CLAIMS}: merging with tuning ≥ pruning neurons without any",
    ),
    Doubt(
        "1",
        "The naive baseline: share one FF sublayer that is initialised at random, and tune?",
        "It keeps {kept[random, third, untuned]} before tuning and {kept[random, third, tuned]} "
        "after; permute {kept[permute, third, untuned]} and {kept[permute, third, tuned]}. "
        "That averaging is no worse after tuning: "
        "{verdict[averaging ≥ one random FF, after tuning]}.",
        f"{CLAIMS}: averaging ≥ one random FF",
    ),
    Doubt(
        "1",
        "Neurons pruned by magnitude, or those that are hardly active?",
        "By magnitude they keep {kept[neurons_magnitude, third, untuned]}, by activation × output "
        "{kept[neurons_activation, third, untuned]}; with least squares "
        "{kept[neurons_magnitude_refit, third, untuned]} and "
        "{kept[neurons_activation_refit, third, untuned]} (a third removed, before tuning).",
        f"{CONTEST}; {ABLATIONS}",
    ),
    Doubt(
        "2, 4",
        "Second-order (Hessian-aware) pruning that chooses at any granularity?",
        "Its stand-ins here are a Taylor expansion ({kept[neurons_taylor_refit, third, untuned]}), "
        "OBS in every FF sublayer ({kept[neurons_obs_refit, third, untuned]}) and OBS with one "
        "budget for all ({kept[neurons_obs_budget, third, untuned]}); a third removed, before "
        "tuning. Attention heads and embeddings are pruned nowhere: not run.",
        f"{CONTEST}; {ABLATIONS}",
    ),
    Doubt(
        "2",
        "Could merging itself work in finer grains, neuron by neuron?",
        "Tried from both ends, on every model trained here. Elimination from all neurons keeps "
        "next to no merged one, but cannot: the private ones give both outputs exactly, so that "
        "merged ones are missed least. Search from none keeps hardly any where half of the neurons "
        "are stored, and some where a quarter is or less; what they do to the score there has no "
        "one sign.",
        "[what notebook 8 measures](beyond.md), and [how](../results/notebooks/vit-glyphs/"
        "8_beyond.ipynb); "
        f"{ABLATIONS}: one budget for two neighbours (pool)",
    ),
    Doubt(
        "2",
        "Dropping layers is a weak baseline, and loses computation that merging keeps?",
        "Layers chosen by trial, by Block Influence and by angle all stand in the contest, and FF "
        "sublayers left out with their attention kept. That merging is no worse than leaving them "
        "out, before tuning: {verdict[merging FFs ≥ leaving them out, before tuning]}; after: "
        "{verdict[merging FFs ≥ leaving them out, after tuning]}.",
        f"{CLAIMS}: merging FFs ≥ leaving them out; [leaderboard, a half](contest-half.md)",
    ),
    Doubt(
        "3",
        "Wanda removes half of the weights at once, without tuning?",
        "Here it keeps {kept[wanda, half, untuned]} with {stored[wanda, half]} of the bytes, zeros "
        "left out and a bit map counted; in its 2:4 form {kept[wanda_2_4, half, untuned]} with "
        "{stored[wanda_2_4, half]}. Stored densely it saves nothing.",
        "[leaderboard, a half](contest-half.md)",
    ),
    Doubt(
        "3",
        "Quantisation against merging, not only on top of it?",
        "LLM.int8() alone keeps {int8[kept]} with {int8[bytes]} of the bytes; a third merged keeps "
        "{kept[permute, third, tuned]} with {stored[permute, third]} of the parameters. That the "
        "two compose: {verdict[int8 composes with merging]}. NF4 alone keeps {nf4[kept]} with "
        "{nf4[bytes]} of the bytes.",
        "[Table 3](table3.md); [sizes](pareto.png)",
    ),
    Doubt(
        "2",
        "Permuting hardly helps, or harms?",
        "Before tuning {lead[permute, vanilla, third, untuned]} with a third removed, after it "
        "{lead[permute, vanilla, third, tuned]}. That it is no worse after tuning, at every ratio: "
        "{verdict[permute ≥ vanilla, after tuning]}.",
        f"{CLAIMS}: permute ≥ vanilla; [windows](windows.md)",
    ),
    Doubt(
        "1",
        "What is left without fine-tuning, and what does tuning add?",
        "A third merged keeps {kept[permute, third, untuned]} before and "
        "{kept[permute, third, tuned]} after, a half {kept[permute, half, untuned]} and "
        "{kept[permute, half, tuned]}. Least squares instead of tuning gives "
        "{kept[refit, third, untuned]} and {kept[refit, half, untuned]}.",
        "[Table 10](table10.md); [leaderboard](contest-third.md)",
    ),
    Doubt(
        "1, 2, 4",
        "Why a window of neighbours, found by trial, and not the most similar sublayers?",
        "That one window is no worse than several groups, which dynamic programming finds: "
        "{verdict[one window ≥ several groups, before tuning]}; and groups of neighbours no worse "
        "than groups of any sublayers: {verdict[groups of neighbours ≥ groups of any, before "
        "tuning]}.",
        f"{CLAIMS}: one window ≥ several groups; {ABLATIONS}",
    ),
    Doubt(
        "2",
        "Can all layers be merged?",
        "All but one removed, permute keeps {kept[permute, most, untuned]} before tuning and "
        "{kept[permute, most, tuned]} after; neurons by OBS at as many parameters "
        "{kept[neurons_obs_refit, most, untuned]} and {kept[neurons_obs_refit, most, tuned]}.",
        "[leaderboard, all but one](contest-most.md)",
    ),
    Doubt(
        "4",
        "The same sharing, trained from scratch?",
        "The tied model drawn anew, trained for the steps of the base and of its recovery "
        "together: {kept[scratch, third, tuned]}; the trained model merged and tuned: "
        "{kept[permute, third, tuned]}. That merging is no worse: {verdict[merging a trained model "
        "≥ sharing from scratch, after tuning]}. One random FF sublayer in a trained model, tuned: "
        "{kept[random, third, tuned]}.",
        f"{CLAIMS}: merging a trained model ≥ sharing from scratch",
    ),
    Doubt(
        "2, 4",
        "Sharing weights over layers is not new (ALBERT)?",
        "From the start of training it is not; here a trained model shares afterwards. That "
        "averaging is no worse than copying one layer's FF, before tuning: {verdict[averaging ≥ "
        "copying one FF, before tuning]}; after: {verdict[averaging ≥ copying one FF, after "
        "tuning]}.",
        f"{CLAIMS}: averaging ≥ copying one FF",
    ),
    Doubt(
        "1, 2",
        "And attention: others share it, and FF sublayers are not all that a model has?",
        "That FF outputs are more alike than attention outputs: {verdict[FF outputs are more alike "
        "than attention outputs]}. Merging attention (heads aligned, W_v and W_o shared, a third "
        "of them removed) keeps {kept[attention, third, untuned]} before tuning and "
        "{kept[attention, third, tuned]} after it, with {stored[attention, third]} of the "
        "parameters; with the FF sublayers of the same window {kept[attention_ff, third, untuned]} "
        "and {kept[attention_ff, third, tuned]} with {stored[attention_ff, third]}, the FF "
        "sublayers alone {kept[permute, third, untuned]} and {kept[permute, third, tuned]} with "
        "{stored[permute, third]}.",
        f"{CLAIMS}; [attention](attention.md); Figures 5 and 6 on the [page](README.md); "
        f"{ATTENTION}",
    ),
    Doubt(
        "1",
        "Why has b_out no permutation?",
        "P reorders the neurons inside, and W_out Pᵀ undoes it: what comes out is in the order of "
        "d_model, where b_out is added. A permuted sublayer computes what it did.",
        f"{SUBLAYERS}: permuting one sublayer leaves the logits unchanged",
    ),
    Doubt(
        "1",
        "Is vanilla the plain average?",
        "Yes: weights are averaged as they stand, without any alignment.",
        f"{MERGING}: vanilla is the mean of the weights",
    ),
    Doubt(
        "3",
        "Larger and newer models, more benchmarks (LLaMA, MMLU)?",
        "One of LLaMA's kind that others pretrained takes the same path with a short recovery of "
        "mostly one seed, and is read on code documentation, on other text and on a quiz; a vision "
        "encoder that others pretrained is merged and pruned, and not tuned. The paper's own "
        "models are in params.yaml, and have not been run.",
        "“Real models” on the [page](README.md); [params.yaml](../params.yaml)",
    ),
    Doubt(
        "1, 3",
        "Some sentences of the paper are unclear?",
        "Nothing to run; the authors answered that they corrected them.",
        "no row",
    ),
)
