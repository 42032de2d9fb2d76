/**
 * All bytes that a text may stand for: what a program prints of a buffer, whichever way it prints it. Nothing of it is known to be bytes, so each way is tried on all of the text,
 * and each result read backwards as well: numbers of several bytes are printed with the last byte first.
 */

/** JSON's and inspect's keys of bytes that are printed as an object: `"7":`, `7:`. */
const KEYS = /["']?\b\d+\b["']?\s*:/g;
/** Between the bytes of a dump: `0a 0b`, `0a:0b`, `0x0a, 0x0b`, `\x0a\x0b`, `["0a","0b"]`, and a line's end, also as JSON has it. */
const BETWEEN_HEX = /\\[nrtx]|0x|[\s:,._%'"-]/gi;
const NUMBER = /-?\b(?:0x[0-9a-f]+|\d+)/gi;
const ESCAPE = /\\(?:x([0-9a-f]{2})|u00([0-9a-f]{2})|([bfnrtv0\\"']))|%([0-9a-f]{2})/gi;
const ESCAPED: Readonly<Record<string, string>> = {
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
  v: '\v',
  0: '\0',
};

/** Every reading of `text`. Of what is shorter than `least` bytes there may be none. */
export function bytesInText(text: string, least: number): readonly Buffer[] {
  const readings = [
    characters(text),
    ...hexDumps(text, least),
    ...numbers(text),
    ...numbers(text.replace(KEYS, ' ')),
    ...base64(text, least),
  ].filter(({ length }) => length >= least);
  return [...readings, ...readings.map((bytes) => Buffer.from(bytes).reverse())];
}

/** A character a byte, some of them escaped. */
function characters(text: string): Buffer {
  const plain = text.replace(ESCAPE, (_, x?: string, u?: string, letter?: string, percent?: string) =>
    letter === undefined
      ? String.fromCharCode(Number.parseInt(x ?? u ?? percent ?? '', 16))
      : (ESCAPED[letter] ?? letter),
  );
  return Buffer.from(plain, 'latin1');
}

/** Two digits a byte. Where the first byte begins is not known. */
function hexDumps(text: string, least: number): Buffer[] {
  const runs = text.replace(BETWEEN_HEX, '').match(new RegExp(`[0-9a-f]{${2 * least},}`, 'gi')) ?? [];
  return runs.flatMap((run) => [run, run.slice(1)]).map((run) => Buffer.from(run, 'hex'));
}

/** Those that are a byte each; all that fit in 32 bits; all that fit in 64 bits. */
function numbers(text: string): Buffer[] {
  const values = (text.match(NUMBER) ?? []).map((token) =>
    token.startsWith('-') ? -BigInt(token.slice(1)) : BigInt(token),
  );
  const within = (bits: bigint) =>
    values.filter((value) => -value <= 1n << (bits - 1n) && value >> bits <= 0n);
  return [
    Buffer.from(Uint8Array.from(within(8n), Number)),
    Buffer.from(Uint32Array.from(within(32n), (value) => Number(BigInt.asUintN(32, value))).buffer),
    Buffer.from(BigUint64Array.from(within(64n), (value) => BigInt.asUintN(64, value)).buffer),
  ];
}

/** Both alphabets, over the ends of lines; where four characters begin is not known. */
function base64(text: string, least: number): Buffer[] {
  const letters = Math.ceil((least * 4) / 3);
  const runs = text.replace(/\\n|\s/g, '').match(new RegExp(`[\\w+/-]{${letters},}`, 'g')) ?? [];
  return runs.flatMap((run) => [0, 1, 2, 3].map((from) => Buffer.from(run.slice(from), 'base64')));
}
