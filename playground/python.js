// Questions to the worker. Of one kind the newest waits; an older one that has not been sent is answered null.
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const waiting = new Map(); // kind -> {request, done}, not yet sent
const sent = new Map(); // id -> {kind, done}
const busy = new Set();
let number = 0;
let ready = () => {};

// Nothing is asked for: what is dear to import may be imported now.
export const idle = () => worker.postMessage({ idle: true });

export const onReady = (f) => { ready = f; };

export function ask(question, rest) {
  const kind = question === "check" && rest.fuse ? "check all" : question;
  return new Promise((done) => {
    waiting.get(kind)?.done(null);
    waiting.set(kind, { request: { question, ...rest }, done });
    send(kind);
  });
}

function send(kind) {
  const next = waiting.get(kind);
  if (!next || busy.has(kind)) return;
  waiting.delete(kind);
  busy.add(kind);
  sent.set(++number, { kind, done: next.done });
  worker.postMessage({ id: number, request: next.request });
}

worker.onmessage = ({ data }) => {
  if (data.ready) return ready();
  if (data.failed) document.querySelector("#busy").textContent = `Python failed: ${data.failed}`;
  const { kind, done } = sent.get(data.id) ?? {};
  if (!kind) return;
  sent.delete(data.id);
  busy.delete(kind);
  done(data.answer ?? null);
  send(kind);
};
