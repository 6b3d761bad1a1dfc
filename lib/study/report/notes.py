"""The footnotes of figures and tables: what is shown, in which unit, with which spread."""

from study.report.standings import FAIR, LEAST, NEAR

REMOVED = (
    "Test split, after tuning (where nothing is tuned, before); bars: one standard deviation over "
    "seeds, where longer than a marker."
)
REDUCTION = "Test split; bars: one standard deviation over seeds, where longer than a marker."
WINDOWS = "Validation split, before tuning; a number with an arrow lies beyond the axis."
SIMILARITY = "Validation split; an encoder and a decoder see different tokens and are not compared."
CURVES = (
    "Validation split, in the precision of tuning; band: one standard deviation over seeds; a "
    "number with an arrow lies beyond the axis."
)
PARETO = (
    "Test split, after tuning, in percent of the base tuned alike; bars: one standard deviation "
    "over seeds, where longer than a marker. Hollow: in 8 bits; models with adapters are in 4. "
    "Ringed: no smaller model keeps as much, by its mean. An arrow marks what keeps less than the "
    "axis shows. Variants that are tuned with one seed (Tables 1 and 2) are left out. Neurons "
    "pruned by OBS are the contest's, all else is the paper's."
)
HELPED = "Median gain: in the metric's unit, + is better. With all but one merged: a single window."
CLAIMS = (
    "Percentages are of the quality of the base tuned alike; ±: half of the 95 % interval "
    "over seeds (t distribution; Welch's, where two are compared). A claim holds, or does "
    "not, where the interval lies on one side of its bound; one seed decides nothing, and of "
    "twenty verdicts one may be wrong by chance. Bounds that are ours say so. Each row says "
    "which model is larger; if the better one is larger by more than 2 points of the "
    "parameters, its size may be why: undecided. Windows: an exact sign test, though windows "
    "overlap. The paper's losses are those of Tables 10 and 4: of GPT-2 and OLMo against a "
    "base tuned alike, of the other two against an untuned one."
)
DOUBTS = (
    "Claims that start with “Reviewers” are their doubts, in words that the paper would like to "
    "hold. Before tuning there is one number of each variant: of an accuracy the interval is what "
    "the test's examples leave open (binomial, as if the two were scored on different ones, which "
    "makes it wide); of other metrics there is none, and differences below our bound decide "
    "nothing. Which pruning of neurons is the best is chosen on validation data. Merging with "
    "tuning against pruning without: seeds are of the merge alone."
)
CONTEST = (
    "Test split, in percent of the uncompressed model as it is, also after tuning; where tuning "
    "teaches another task, of the base tuned alike, and before it in the base's own metric. "
    "Hollow: before tuning; filled: after, bars: one standard deviation over seeds. Quality is "
    "drawn finer towards 100. Points that would cover each other stand side by side: all that "
    "share have 100 % of the FLOPs. Wanda stands at its bytes, zeros not stored. Against FLOPs "
    "only the best of each family and the paper's methods; a line leads from where least is "
    "removed to where most is."
)
BOARD = (
    "Quality kept, in percent of the uncompressed model as it is: before → after tuning, ± half "
    "of the 95 % interval over seeds (¹: one seed). The summariser's before is the perplexity "
    "of its base's own task, and its after ROUGE-1, of the base tuned alike. Bold: the best of "
    f"those that are not larger than a merge by more than {FAIR:.0f} points of the parameters, "
    "after tuning where more than one family is tuned. What is not larger is ranked: by how "
    "many of the methods that most models have keep more before tuning, the mean over models. "
    f"Of whole layers the nearest number stands here, if it is within {NEAR:.0f} points. Wanda's "
    "size is bytes, zeros not stored."
)
ABLATIONS = (
    "Validation split, before tuning, the best candidate of each method: percent of the base's "
    "quality that the second keeps more than the first; a third / a half / all but one of the FF "
    f"sublayers removed (layers: the numbers in params.yaml). Better: by more than {LEAST} %, our "
    "bound. A negative result is worse at as many places as it is better, or more."
)
TUNED = (
    "Test split, after tuning: percent of the quality of the base tuned alike that the second "
    "keeps more than the first, at each ratio at which both were tuned, what removes least first; "
    "± half of the 95 % interval over seeds (¹: a single seed of one of them)."
)
BEYOND = (
    "Validation split, before tuning; percentages are of the base's quality, but for neurons, the "
    "squared error of both outputs of a pair, and spreads (of the base's). Two neighbours store a "
    "share of their neurons: private ones, or merged ones that both run. λ is a share of the mean "
    "diagonal. Where At names no ratio, a third of the FF sublayers is shared or removed."
)
ATTENTION = (
    "Test split; parameters and quality in percent of the uncompressed model's (± standard "
    "deviation over seeds; attention was tuned with one). Models whose projections cannot be "
    "shared one by one are not here."
)
BITS = (
    "Test split. Quality in percent of the uncompressed model's in 32 bits, mean ± standard "
    "deviation over seeds; bytes in percent of its bytes, with every scale. 8 bits: LLM.int8(); "
    "4 bits: NF4 with two levels of scales. Nothing is tuned in fewer bits."
)
RANDOM = "Random windows are numbered as drawn, ours and the paper's each."
INT8 = (
    "Size remaining: bytes of all weights, of the uncompressed model's in 32 bits. Ours count"
    " the scales (4 bytes for each row of an 8-bit weight), which weigh the more, the "
    "narrower a model is; embeddings stay in 32 bits. The paper's release prints "
    "`get_memory_footprint()`, which sums parameters and buffers: scales are neither, so its "
    "percentages leave them out. At its widths they add a tenth of a point (ViT-B: 82,944 "
    "rows, 0.33 of 346 MB; merged 67,584 rows, 0.27 MB), which 20 % does not show."
)
ADAPTERS = "Adapters stand beside all linear layers, over weights in NF4, doubly quantized."
DATA = "The paper prints 12,281,167 training images for ImageNet-1k; the data set has 1,281,167."
FULL = (
    "Removed: FF sublayers, or whole layers. Paper: the same share of the paper's own model. "
    "Where it says that 11 of OPUS-MT's 12 are removed, it is 10: each stack keeps one. A "
    "base that was never taught the task is no measure of it (–)."
)
COMET = "The paper's metric is COMET; `models/MODEL/answers` holds the texts to compute it on."
OVERVIEW = (
    r"\* Tuned alike, if not said otherwise: the same short training as the merged model's. Kept: "
    "of that model's quality. Layers whose FF is removed share the merged one with neighbours."
)
ALIGNMENTS = (
    "Line: mean over pairs of sublayers; band: from the least to the most alike pair. Red, orange: "
    "models that others pretrained. Only pairs that some window needs."
)
READINGS = (
    "Test split. Perplexity per token, of the model's own task and of its readings; the quiz is "
    "multiple choice with four endings, so 25 is chance. ↓ lower is better, ↑ higher."
)
HEALING = (
    "Test split, percent of the uncompressed model as it is. Weight: of the uncompressed model's "
    "predictions in the loss; the rest is the paper's recovery. The same steps and data."
)
