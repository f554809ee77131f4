"""The methods that are compared: each is some flags of train.py."""

NO_HIDDEN = "--kd-feature-scale 0 --kd-relation-scale 0 --kd-apc-scale 0"
TOKENS = f"{NO_HIDDEN} --kd-token-scale 0.5"
FEATURE = "--kd-feature-scale 1 --kd-relation-scale 0 --kd-apc-scale 0"
FEATURE_RELATION = "--kd-feature-scale 1 --kd-relation-scale 0.1 --kd-apc-scale 0"
FEATURE_APC = "--kd-feature-scale 1 --kd-relation-scale 0 --kd-apc-scale 0.5"
FEATURE_RELATION_APC = "--kd-feature-scale 1 --kd-relation-scale 0.1 --kd-apc-scale 0.5"
TEACHERS_WEIGHTS = "--init-from-teacher 1"
BEST = f"{FEATURE_APC} {TEACHERS_WEIGHTS} --kd-token-scale 0.5"
SPEC_AUG = "--enable-spec-aug 1"
BOTH_MODES = "--full-context-scale 0.5 --mode-consistency-scale 0.5"

# The flags of train.py that make a method.
METHODS = {
    "baseline": "",
    "init-from-teacher": f"{NO_HIDDEN} {TEACHERS_WEIGHTS}",
    "token-full": f"{TOKENS} --kd-token-form full",
    "token-collapsed": f"{TOKENS} --kd-token-form collapsed",
    "token-one-best": f"{TOKENS} --kd-token-form one-best",
    "direct-feature": f"{FEATURE} --kd-branch none",
    "branch-feature": FEATURE,
    "branch-feature-relation": FEATURE_RELATION,
    "branch-feature-apc": FEATURE_APC,
    "branch-feature-relation-apc": FEATURE_RELATION_APC,
    "init-feature-relation-apc": f"{FEATURE_RELATION_APC} {TEACHERS_WEIGHTS}",
    "best": BEST,
    "mode-consistency": BOTH_MODES,
    "best-mode-consistency": f"{BEST} {BOTH_MODES}",
    "teacher-branch": f"{BEST} --kd-branch teacher",
    "shift-auto": f"{BEST} --kd-token-shift auto:4",
    "ctc-distillation": f"{BEST} --kd-ctc-scale 0.5",
    "spec-aug": SPEC_AUG,
    "cr-ctc": f"{SPEC_AUG} --cr-ctc-scale 0.1 --time-mask-ratio 1",
}
WITHOUT_TEACHER = ("baseline", "mode-consistency", "spec-aug", "cr-ctc")
IN_FULL_CONTEXT = {name: f"{name}, full context" for name, flags in METHODS.items() if BOTH_MODES in flags}
TOKEN_METHODS = [name for name in METHODS if name.startswith("token-")]
