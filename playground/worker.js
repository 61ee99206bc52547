// Python, in a thread of its own: one request at a time, in order. Algebra is loaded when a proof asks for it that is not kept.
import { loadPyodide } from "./pyodide/pyodide.mjs";

const bytes = async (name) => (await fetch(new URL(name, import.meta.url))).arrayBuffer();

async function start() {
  const [pyodide, packages] = await Promise.all([
    loadPyodide({ indexURL: new URL("./pyodide/", import.meta.url).href }),
    bytes("python.zip"),
  ]);
  pyodide.unpackArchive(packages, "zip", { extractDir: "/packages" });
  pyodide.runPython(`
import os, sys
sys.path.insert(0, "/packages")
os.environ["EINFUSE_CACHE"] = "/packages/kept"
for folder in ("/packages/kept", "/packages/kept/v1"):
    os.chmod(folder, 0o700)  # as the cache wants it; an archive has no modes
`);
  return { pyodide, page: pyodide.pyimport("einfuse._editor.page") };
}

async function withAlgebra({ pyodide }) {
  pyodide.unpackArchive(await bytes("sympy.zip"), "zip", { extractDir: "/packages" });
  pyodide.runPython("import importlib; importlib.invalidate_caches(); import sympy");
}

async function answered(python, request) {
  try {
    return python.page.answer(request);
  } catch (error) {
    if (algebra || !/No module named '(sympy|mpmath)/.test(error)) throw error;
    await (algebra = withAlgebra(python));
    return python.page.answer(request);
  }
}

const started = start();
let algebra = null;
let last = started;

onmessage = ({ data: { id, request, idle } }) => {
  last = last.then(async () => {
    if (idle) return algebra ??= withAlgebra(await started);
    postMessage({ id, answer: JSON.parse(await answered(await started, JSON.stringify(request))) });
  }).catch((error) => postMessage({ id, failed: String(error) }));
};

started.then(() => postMessage({ ready: true }), (error) => postMessage({ failed: String(error) }));
