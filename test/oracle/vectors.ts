/**
 * Recorded answers of a real CPU, so that `npm test` can judge our core on any machine. Snippets come from the generator and a
 * seed; the file holds their code (to notice a changed generator) and what differs between the state before and after.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { formsOf } from './forms.ts';
import { FLOAT_GROUPS, GROUPS } from './groups.ts';
import type { Outcome, Snippet } from './snippet.ts';
import { SnippetGenerator } from './snippet-generator.ts';

export const VECTOR_SEED = 20_260_101;
export const VECTORS_PER_GROUP = 150;

/** One snippet's answer; numbers are hexadecimal. */
export interface Vector {
  readonly code: string;
  readonly flags: string;
  /** Changed registers by number. */
  readonly registers?: Readonly<Record<string, string>>;
  /** Changed bytes by offset: of the sixteen vectors, of the memory window. */
  readonly vectors?: Readonly<Record<string, string>>;
  readonly window?: Readonly<Record<string, string>>;
  /** Where it changed. */
  readonly mxcsr?: string;
  readonly signal?: number;
  readonly rip?: string;
}

export type Vectors = Readonly<Record<string, readonly Vector[]>>;

const FILE = new URL('./vectors.jsonl', import.meta.url);

/** The recorded vectors: one a line, its group before it. */
export function readVectors(): Vectors {
  const vectors: Record<string, Vector[]> = {};
  for (const line of readFileSync(FILE, 'utf8').trim().split('\n')) {
    const [group, vector] = JSON.parse(line) as [string, Vector];
    vectors[group] ??= [];
    vectors[group].push(vector);
  }
  return vectors;
}

export function writeVectors(vectors: Vectors): void {
  const lines = Object.entries(vectors).flatMap(([group, list]) =>
    list.map((vector) => `${JSON.stringify([group, vector])}\n`),
  );
  writeFileSync(FILE, lines.join(''));
}

/** The snippets of every group, the same each time. */
export function vectorSnippets(): Record<string, Snippet[]> {
  const take = (generator: SnippetGenerator) =>
    Array.from({ length: VECTORS_PER_GROUP }, (_, n) => generator.next(n));
  const all: Record<string, Snippet[]> = {};
  for (const [name, mnemonics] of Object.entries(GROUPS)) {
    const floats = FLOAT_GROUPS.has(name);
    all[name] = take(new SnippetGenerator(VECTOR_SEED, [formsOf(mnemonics)], { floats }));
  }
  const mixed = Object.values(GROUPS).map((mnemonics) => formsOf(mnemonics));
  all['mixed'] = take(new SnippetGenerator(VECTOR_SEED, mixed, { longest: 8, floats: true }));
  const branches = ['arithmetic', 'move', 'shifts'].map((name) => formsOf(GROUPS[name]!));
  all['branches'] = take(new SnippetGenerator(VECTOR_SEED, branches, { longest: 6, branches: true }));
  return all;
}

export function vectorOf({ code, before }: Snippet, outcome: Outcome): Vector {
  const registers = before.registers
    .map((value, r) => [r, outcome.registers[r]!, value] as const)
    .filter(([, after, value]) => after !== value)
    .map(([r, after]) => [r, after.toString(16)]);
  const bytes = (from: Uint8Array, to: Uint8Array) =>
    [...runs(from, to)].map(([at, run]) => [at, Buffer.from(run).toString('hex')]);
  const faulted = outcome.signal !== 0;
  return {
    code: Buffer.from(code).toString('hex'),
    flags: outcome.flags.toString(16),
    ...optional('registers', registers),
    ...optional('vectors', bytes(before.vectors, outcome.vectors)),
    ...(outcome.mxcsr === before.mxcsr ? {} : { mxcsr: outcome.mxcsr.toString(16) }),
    ...optional('window', bytes(before.window, outcome.window)),
    ...(faulted ? { signal: outcome.signal, rip: outcome.rip.toString(16) } : {}),
  };
}

const optional = (name: string, entries: readonly (readonly (string | number)[])[]) =>
  entries.length === 0 ? {} : { [name]: Object.fromEntries(entries) };

/** Runs of bytes that differ. */
function* runs(from: Uint8Array, to: Uint8Array): Iterable<[number, Uint8Array]> {
  for (let at = 0; at < to.length; at++) {
    const start = at;
    while (at < to.length && from[at] !== to[at]) at++;
    if (at > start) yield [start, to.slice(start, at)];
  }
}

/** The outcome that a vector stands for. */
export function outcomeOf({ before }: Snippet, vector: Vector): Outcome {
  const registers = [...before.registers];
  for (const [r, value] of Object.entries(vector.registers ?? {}))
    registers[Number(r)] = BigInt(`0x${value}`);
  const patched = (from: Uint8Array, changes: Readonly<Record<string, string>> = {}) => {
    const bytes = from.slice();
    for (const [at, hex] of Object.entries(changes)) bytes.set(Buffer.from(hex, 'hex'), Number(at));
    return bytes;
  };
  return {
    registers,
    flags: BigInt(`0x${vector.flags}`),
    vectors: patched(before.vectors, vector.vectors),
    window: patched(before.window, vector.window),
    mxcsr: vector.mxcsr === undefined ? before.mxcsr : Number.parseInt(vector.mxcsr, 16),
    signal: vector.signal ?? 0,
    rip: BigInt(`0x${vector.rip ?? '0'}`),
  };
}
