// Python, in a thread of its own: one request at a time, in order. It starts from the memory of a Python that has answered (pack.mjs). Algebra is
// loaded when a proof asks for it that is not kept.
import { placed } from "./files.js";
import { loadPyodide } from "./pyodide/pyodide.mjs";

const fetched = self.fetch;
const opened = async (name) => (await fetched(new URL(`${name}.gz`, import.meta.url))).body.pipeThrough(new DecompressionStream("gzip"));
const bytes = async (name) => new Uint8Array(await new Response(await opened(name)).arrayBuffer());

// Pyodide asks for its code by name; here it lies packed.
self.fetch = async (url, ...rest) => {
  if (!String(url).endsWith(".wasm")) return fetched(url, ...rest);
  return new Response(await opened("pyodide/pyodide.asm.wasm"), { headers: { "Content-Type": "application/wasm" } });
};

async function start() {
  const [pyodide, packages] = await Promise.all([
    loadPyodide({ indexURL: new URL("./pyodide/", import.meta.url).href, _loadSnapshot: bytes("memory") }),
    bytes("python"),
  ]);
  placed(pyodide.FS, "/packages", packages);
  return { pyodide, page: pyodide.pyimport("einfuse._editor.page") };
}

async function withAlgebra({ pyodide }) {
  placed(pyodide.FS, "/packages", await bytes("sympy"));
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
