/** t/moody does what its input says: what the protocol's test cannot ask of an algorithm that is always quick. */

import { appendFileSync } from "node:fs";
import { Failed, serve } from "./mesh.js";

const sleep = (ms, signal) => new Promise((wake, stop) => {
  const timer = setTimeout(wake, ms);
  signal.addEventListener("abort", () => (clearTimeout(timer), stop(signal.reason)));
});

await serve(async (wish, { signal, run }) => {
  if (wish.file) appendFileSync(wish.file, `${run}\n`);
  if (wish.hang_ms) for (const until = Date.now() + wish.hang_ms; Date.now() < until; );
  if (wish.sleep_ms) await sleep(wish.sleep_ms, signal);
  if (wish.ignore_ms) await new Promise((wake) => setTimeout(wake, wish.ignore_ms));
  if (wish.fail) throw new TypeError(wish.fail);
  if (wish.refuse) throw new Failed("bad_input", wish.refuse, "Moody");
  if (wish.bytes) return new Uint8Array(wish.bytes);
  if (wish.letters) return "x".repeat(wish.letters);
  if (wish.nothing) return undefined;
  if (wish.exit !== undefined) process.exit(wish.exit);
  return wish.give ?? wish;
});
