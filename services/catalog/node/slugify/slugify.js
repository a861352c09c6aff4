/** text/slugify makes of any text what can stand in an address: "Grüße, Welt!" becomes "gruesse-welt". */

import { fileURLToPath } from "node:url";
import { Failed, pause, serve } from "./mesh.js";

const LONGEST = 80; // of a slug, as most who take one allow
const PIECE = 64 * 1024; // so much is read between two looks at whether anybody still wants it
const IN_WORDS = { "&": " and ", "@": " at ", "%": " percent ", "+": " plus ", "€": " euro ", "$": " dollar " };
// What Unicode does not take apart by itself.
const LETTERS = { ä: "ae", ö: "oe", ü: "ue", ß: "ss", æ: "ae", œ: "oe", ø: "o", đ: "d", ð: "d", þ: "th", ł: "l", ı: "i" };
const SPECIAL = new RegExp(`[${Object.keys({ ...IN_WORDS, ...LETTERS }).join("")}]`, "gu");

export async function slugify(text, { signal } = {}) {
  if (typeof text !== "string") throw new Failed("bad_input", `text/slugify takes text, not ${typeof text}`);
  const words = [];
  for (let at = 0, length = 0; at < text.length && length <= LONGEST; at += PIECE) {
    const found = plain(text.slice(at, at + PIECE)).match(/[a-z0-9]+/g) ?? [];
    words.push(...found.slice(0, LONGEST));
    length = words.join("-").length;
    if (text.length > PIECE) await pause();
    signal?.throwIfAborted();
  }
  return shortened(words);
}

/** Small letters without accents, signs in words. */
function plain(text) {
  return text
    .normalize("NFC")
    .toLowerCase()
    .replace(SPECIAL, (letter) => IN_WORDS[letter] ?? LETTERS[letter])
    .normalize("NFKD")
    .replace(/[\u0300-\u036f'’]/g, "");
}

/** As many words as have room; of a first one that has none, its beginning. */
function shortened(words) {
  let slug = "";
  for (const word of words) {
    const longer = slug ? `${slug}-${word}` : word.slice(0, LONGEST);
    if (longer.length > LONGEST) break;
    slug = longer;
  }
  return slug;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await serve(slugify);
