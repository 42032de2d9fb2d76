/** Why two launches have different digests: the first page in which they differ, and what differs in it. */
import { toHex } from '../base/hex.ts';
import { sameBytes } from './bytes.ts';
import { type LaunchUpdate, type PageType, requireUpdates } from './launch-digest.ts';
import { vmsaFieldAt } from './vmsa.ts';

/** A page of a launch. */
export interface LaunchPage {
  readonly type: PageType;
  readonly gpa: number;
  readonly label: string;
  readonly bytes: Uint8Array | undefined;
}

export interface LaunchDifference {
  /** Number of the page, from 0, in the order of the launch. */
  readonly page: number;
  /** What there is in each launch; undefined: it has ended. */
  readonly first: Omit<LaunchPage, 'bytes'> | undefined;
  readonly second: Omit<LaunchPage, 'bytes'> | undefined;
  /** The first thing that differs: page, type, address, or a place in the page. */
  readonly what: string;
  readonly got: string;
  readonly want: string;
}

const PAGE = 4096;
/** Of pages whose type says what is in them. */
const NOTHING = new Uint8Array(0);

function* pages(updates: readonly LaunchUpdate[]): Generator<LaunchPage> {
  for (const { type, gpa, size, bytes, label } of updates) {
    for (let at = 0; at < size; at += PAGE) {
      yield { type, gpa: gpa + at, label, bytes: bytes?.subarray(at, at + PAGE) };
    }
  }
}

/** `got` is of the first launch, `want` of the second. Undefined: they are the same. RangeError as `launchDigest`. */
export function launchDifference(
  first: readonly LaunchUpdate[],
  second: readonly LaunchUpdate[],
): LaunchDifference | undefined {
  requireUpdates('first updates', first);
  requireUpdates('second updates', second);
  const others = pages(second);
  let index = 0;
  for (const one of pages(first)) {
    const next = others.next();
    const difference = next.done ? ends(one, undefined) : differs(one, next.value);
    if (difference !== undefined) return { page: index, ...difference };
    index++;
  }
  const left = others.next();
  return left.done ? undefined : { page: index, ...ends(undefined, left.value) };
}

type Difference = Omit<LaunchDifference, 'page'>;

const withoutBytes = (page: LaunchPage | undefined): Omit<LaunchPage, 'bytes'> | undefined =>
  page && { type: page.type, gpa: page.gpa, label: page.label };

const describe = (page: LaunchPage | undefined): string =>
  page === undefined ? 'no page' : `${page.label}, ${page.type} at 0x${page.gpa.toString(16)}`;

const ends = (first: LaunchPage | undefined, second: LaunchPage | undefined): Difference => ({
  first: withoutBytes(first),
  second: withoutBytes(second),
  what: 'page',
  got: describe(first),
  want: describe(second),
});

function differs(first: LaunchPage, second: LaunchPage): Difference | undefined {
  const both = { first: withoutBytes(first), second: withoutBytes(second) };
  if (first.type !== second.type) return { ...both, what: 'type', got: first.type, want: second.type };
  if (first.gpa !== second.gpa) {
    return {
      ...both,
      what: 'address',
      got: `0x${first.gpa.toString(16)}`,
      want: `0x${second.gpa.toString(16)}`,
    };
  }
  const [a, b] = [first.bytes ?? NOTHING, second.bytes ?? NOTHING];
  if (sameBytes(a, b)) return undefined;
  const at = a.findIndex((byte, index) => byte !== b[index]);
  const field = first.type === 'vmsa' ? vmsaFieldAt(at) : undefined;
  if (field !== undefined) {
    const value = (bytes: Uint8Array): string =>
      `0x${toHex(bytes.slice(field.offset, field.offset + field.size).reverse())}`;
    return { ...both, what: `VMSA field ${field.name}`, got: value(a), want: value(b) };
  }
  const value = (bytes: Uint8Array): string => toHex(bytes.subarray(at, at + 16));
  return { ...both, what: `bytes from 0x${at.toString(16)} of the page`, got: value(a), want: value(b) };
}
