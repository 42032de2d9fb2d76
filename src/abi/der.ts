/**
 * DER (X.690), read strictly and written: as much as X.509 certificates, CRLs and keys need. Lengths must be definite and minimal,
 * integers minimal, and nothing may follow what was read. Left out: tags above 30, and types that certificates of AMD do not use.
 *
 * Own code in place of a library: over the three certificates of a report, asn1js 3.1 takes 3 times, pkijs 4.0 and @peculiar/x509 2.2 take 5 times as long as
 * all four signature checks (this reader: a twentieth of it), and all three read what is no DER: trailing bytes, longer lengths than needed, indefinite
 * ones. test/attest/x509-library.test.ts holds reader and writer against pkijs.
 */
import { toHex } from '../base/hex.ts';

export const TAG = {
  BOOLEAN: 0x01,
  INTEGER: 0x02,
  BIT_STRING: 0x03,
  OCTET_STRING: 0x04,
  NULL: 0x05,
  OID: 0x06,
  UTF8_STRING: 0x0c,
  PRINTABLE_STRING: 0x13,
  IA5_STRING: 0x16,
  UTC_TIME: 0x17,
  GENERALIZED_TIME: 0x18,
  SEQUENCE: 0x30,
  SET: 0x31,
} as const;

/** Context-specific tags: [n] that wraps elements, and [n] of a primitive. */
export const contextTag = (number: number): number => 0xa0 | number;
export const contextPrimitiveTag = (number: number): number => 0x80 | number;

/** Malformed DER. The message names the field, what is there and what should be. */
export class DerError extends Error {
  override readonly name = 'DerError';
}

const tagName = (tag: number): string =>
  Object.entries(TAG).find(([, value]) => value === tag)?.[0] ?? `tag 0x${tag.toString(16).padStart(2, '0')}`;

/**
 * Reads elements one after another. A reader of an element's inside shares its bytes: what is read allocates only what is asked for, and a field's path is put
 * together when something is wrong with it.
 */
export class DerReader {
  readonly #bytes: Uint8Array;
  readonly #name: string;
  readonly #outer: DerReader | undefined;
  /** The element whose inside is read begins here; without one, what is read. */
  readonly #start: number;
  readonly #end: number;
  #at: number;
  /** Content of the element taken last: from here to #at. */
  #content = 0;

  /** Reads `bytes`, which messages call `name`; `outer` and what follows are for a reader's own use. */
  constructor(bytes: Uint8Array, name: string, outer?: DerReader, start = 0, at = 0, end = bytes.length) {
    this.#bytes = bytes;
    this.#name = name;
    this.#outer = outer;
    this.#start = start;
    this.#at = at;
    this.#end = end;
  }

  /** Names what is read, for messages. */
  get path(): string {
    return this.#outer === undefined ? this.#name : `${this.#outer.path}.${this.#name}`;
  }

  /** The whole element whose inside is read: tag, length, content. */
  get encoding(): Uint8Array {
    return this.#bytes.subarray(this.#start, this.#end);
  }

  get isAtEnd(): boolean {
    return this.#at === this.#end;
  }

  /** The next element's tag, without taking it; undefined at the end. */
  get nextTag(): number | undefined {
    return this.#at < this.#end ? this.#bytes[this.#at] : undefined;
  }

  /** Throws DerError about a field of what is read. */
  fail(field: string, what: string): never {
    throw new DerError(`${this.path}.${field}: ${what}`);
  }

  /** Takes the next element, which must have `tag`. */
  #take(field: string, tag: number): void {
    const bytes = this.#bytes;
    const end = this.#end;
    const start = this.#at;
    if (start >= end) this.fail(field, `got the end, want ${tagName(tag)}`);
    const got = bytes[start]!;
    if (got !== tag) this.fail(field, `got ${tagName(got)}, want ${tagName(tag)}`);
    if (start + 1 >= end) this.fail(field, 'got the end, want a length');
    let length = bytes[start + 1]!;
    let content = start + 2;
    if (length >= 0x80) {
      const count = length & 0x7f;
      if (count === 0 || count > 4) this.fail(field, `got a length of ${count} bytes, want 1 to 4`);
      if (content + count > end) {
        this.fail(field, `got ${end - content} bytes, want a length of ${count} (truncated)`);
      }
      length = 0;
      for (let i = 0; i < count; i++) length = length * 256 + bytes[content + i]!;
      content += count;
      if (length < 0x80 || length < 2 ** (8 * (count - 1))) {
        this.fail(field, `got length ${length} in ${count} bytes, want it in as few as possible`);
      }
    }
    if (content + length > end) {
      this.fail(field, `got ${end - content} bytes, want ${length} (truncated)`);
    }
    this.#content = content;
    this.#at = content + length;
  }

  /** The next element's content; it must have `tag`. */
  content(field: string, tag: number): Uint8Array {
    this.#take(field, tag);
    return this.#taken();
  }

  #taken(): Uint8Array {
    return this.#bytes.subarray(this.#content, this.#at);
  }

  /** A reader of the next element's inside. */
  inside(field: string, tag: number = TAG.SEQUENCE): DerReader {
    const start = this.#at;
    this.#take(field, tag);
    return new DerReader(this.#bytes, field, this, start, this.#content, this.#at);
  }

  /** A reader of [number]'s inside, if that comes next. */
  optional(field: string, number: number): DerReader | undefined {
    return this.nextTag === contextTag(number) ? this.inside(field, contextTag(number)) : undefined;
  }

  #takeInteger(field: string): void {
    this.#take(field, TAG.INTEGER);
    const bytes = this.#bytes;
    const at = this.#content;
    const length = this.#at - at;
    if (length === 0) this.fail(field, 'got an INTEGER without bytes, want at least one');
    const first = bytes[at]!;
    if (length > 1 && (first === 0 || first === 0xff) && first >> 7 === bytes[at + 1]! >> 7) {
      this.fail(field, 'got an INTEGER with a superfluous byte, want it minimal');
    }
  }

  /** Big-endian two's complement, minimal. */
  integerBytes(field: string): Uint8Array {
    this.#takeInteger(field);
    return this.#taken();
  }

  /** A small INTEGER, at least 0. */
  integer(field: string): number {
    this.#takeInteger(field);
    const bytes = this.#bytes;
    if (bytes[this.#content]! >= 0x80 || this.#at - this.#content > 6) {
      this.fail(field, `got ${shown(this.#taken())}, want an INTEGER from 0 to 2^47 - 1`);
    }
    let value = 0;
    for (let at = this.#content; at < this.#at; at++) value = value * 256 + bytes[at]!;
    return value;
  }

  /** `known`: OIDs to expect, which need not be put into words anew. */
  oid(field: string, known?: KnownOids): string {
    this.#take(field, TAG.OID);
    const bytes = this.#bytes;
    const expected = known?.find(bytes, this.#content, this.#at);
    if (expected !== undefined) return expected;
    let text = '';
    let arc = 0;
    let isWithinArc = false;
    for (let at = this.#content; at < this.#at; at++) {
      const byte = bytes[at]!;
      if (!isWithinArc && byte === 0x80)
        this.fail(field, 'got an OID arc with a leading zero, want it minimal');
      if (arc > 2 ** 44) this.fail(field, 'got an OID arc above 2^51, want a smaller one');
      arc = arc * 128 + (byte & 0x7f);
      isWithinArc = byte >= 0x80;
      if (isWithinArc) continue;
      if (text === '') {
        const root = arc < 80 ? Math.floor(arc / 40) : 2;
        text = `${root}.${arc - 40 * root}`;
      } else text += `.${arc}`;
      arc = 0;
    }
    if (isWithinArc) this.fail(field, 'got an OID that ends within an arc, want a whole one');
    if (text === '') this.fail(field, 'got an empty OID, want at least one arc');
    return text;
  }

  octets(field: string): Uint8Array {
    return this.content(field, TAG.OCTET_STRING);
  }

  /** A BIT STRING of whole bytes. */
  bits(field: string): Uint8Array {
    this.#take(field, TAG.BIT_STRING);
    const unused = this.#content < this.#at ? this.#bytes[this.#content] : 'no';
    if (unused !== 0) this.fail(field, `got ${unused} unused bits, want 0`);
    this.#content++;
    return this.#taken();
  }

  /** A BIT STRING of flags: true at i where bit i is set. */
  flags(field: string): readonly boolean[] {
    const content = this.content(field, TAG.BIT_STRING);
    const unused = content[0];
    if (unused === undefined || unused > 7 || (unused > 0 && content.length === 1)) {
      this.fail(field, `got ${unused ?? 'no'} unused bits, want 0 to 7`);
    }
    if ((content.at(-1)! & ((1 << unused) - 1)) !== 0 && content.length > 1) {
      this.fail(field, 'got unused bits that are set, want them clear');
    }
    const flags: boolean[] = [];
    for (let i = 0; i < 8 * (content.length - 1) - unused; i++) {
      flags.push(((content[1 + (i >> 3)]! >> (7 - (i & 7))) & 1) === 1);
    }
    return flags;
  }

  boolean(field: string): boolean {
    this.#take(field, TAG.BOOLEAN);
    const value = this.#bytes[this.#content];
    if (this.#at - this.#content !== 1 || (value !== 0 && value !== 0xff)) {
      this.fail(field, `got BOOLEAN ${shown(this.#taken())}, want 00 or ff`);
    }
    return value === 0xff;
  }

  /** NULL. */
  nothing(field: string): void {
    this.#take(field, TAG.NULL);
    const length = this.#at - this.#content;
    if (length > 0) this.fail(field, `got ${length} bytes in a NULL, want none`);
  }

  /** Text of any string type that names use. */
  text(field: string): string {
    const tag = this.nextTag;
    if (tag !== TAG.UTF8_STRING && tag !== TAG.PRINTABLE_STRING && tag !== TAG.IA5_STRING) {
      this.fail(field, `got ${tag === undefined ? 'the end' : tagName(tag)}, want a string`);
    }
    this.#take(field, tag);
    // Letter by letter while it is ASCII: a TextDecoder takes several times as long for texts this short.
    let text = '';
    for (let at = this.#content; at < this.#at; at++) {
      const byte = this.#bytes[at]!;
      if (byte >= 0x80) return this.#longText(field, tag);
      text += String.fromCharCode(byte);
    }
    return text;
  }

  /** The text taken last, with characters above ASCII. */
  #longText(field: string, tag: number): string {
    const content = this.#taken();
    if (tag !== TAG.UTF8_STRING) this.fail(field, `got ${shown(content)}, want ASCII`);
    try {
      return utf8.decode(content);
    } catch {
      return this.fail(field, `got ${shown(content)}, want UTF-8`);
    }
  }

  /** UTCTime or GeneralizedTime in the form of RFC 5280: to the second, in Zulu time. */
  time(field: string): Date {
    const isUtc = this.nextTag !== TAG.GENERALIZED_TIME;
    this.#take(field, isUtc ? TAG.UTC_TIME : TAG.GENERALIZED_TIME);
    const bytes = this.#bytes;
    const last = this.#at - 1;
    const fail = (want: string): never => {
      const text = String.fromCharCode(...this.#taken().subarray(0, 20));
      return this.fail(field, `got time ${JSON.stringify(text)}, want ${want}`);
    };
    let isForm = last - this.#content === (isUtc ? 12 : 14) && bytes[last] === 0x5a;
    for (let at = this.#content; at < last; at++) isForm &&= bytes[at]! >= 0x30 && bytes[at]! <= 0x39;
    if (!isForm) fail(`${isUtc ? 'YY' : 'YYYY'}MMDDHHMMSSZ`);
    /** The two digits that end `back` bytes before the Z. */
    const digits = (back: number): number =>
      10 * (bytes[last - back - 2]! - 0x30) + (bytes[last - back - 1]! - 0x30);
    const [month, day, hour, minute, second] = [digits(8), digits(6), digits(4), digits(2), digits(0)];
    const short = digits(10);
    const year = isUtc ? short + (short < 50 ? 2000 : 1900) : 100 * digits(12) + short;
    const date = new Date(Date.UTC(year, month - 1, day, hour, minute, second));
    if (
      date.getUTCFullYear() !== year ||
      date.getUTCMonth() !== month - 1 ||
      date.getUTCDate() !== day ||
      hour > 23 ||
      minute > 59 ||
      second > 59
    ) {
      fail('one that exists');
    }
    return date;
  }

  /** Nothing may follow. */
  end(): void {
    const left = this.#end - this.#at;
    if (left > 0) throw new DerError(`${this.path}: got ${left} bytes after its last field, want none`);
  }
}

const utf8 = new TextDecoder('utf-8', { fatal: true });
const shown = (bytes: Uint8Array): string => toHex(bytes.subarray(0, 32)) + (bytes.length > 32 ? '...' : '');

/** An element of `tag` whose content is `parts` in a row. */
export function der(tag: number, ...parts: readonly Uint8Array[]): Uint8Array {
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const head = [tag];
  if (length < 0x80) head.push(length);
  else {
    const bytes: number[] = [];
    for (let rest = length; rest > 0; rest = Math.floor(rest / 256)) bytes.unshift(rest % 256);
    head.push(0x80 | bytes.length, ...bytes);
  }
  const element = new Uint8Array(head.length + length);
  element.set(head);
  let at = head.length;
  for (const part of parts) {
    element.set(part, at);
    at += part.length;
  }
  return element;
}

export const derSequence = (...parts: readonly Uint8Array[]): Uint8Array => der(TAG.SEQUENCE, ...parts);
export const derSet = (...parts: readonly Uint8Array[]): Uint8Array => der(TAG.SET, ...parts);
export const derNull = (): Uint8Array => der(TAG.NULL);
export const derBoolean = (value: boolean): Uint8Array => der(TAG.BOOLEAN, Uint8Array.of(value ? 0xff : 0));
export const derOctets = (bytes: Uint8Array): Uint8Array => der(TAG.OCTET_STRING, bytes);
/** A BIT STRING of whole bytes. */
export const derBits = (bytes: Uint8Array): Uint8Array => der(TAG.BIT_STRING, Uint8Array.of(0), bytes);
export const derText = (tag: number, text: string): Uint8Array => der(tag, new TextEncoder().encode(text));

/** An unsigned INTEGER. */
export function derInteger(value: number | bigint): Uint8Array {
  const bytes: number[] = [];
  for (let rest = BigInt(value); rest > 0n; rest >>= 8n) bytes.unshift(Number(rest & 0xffn));
  if (bytes.length === 0 || bytes[0]! >= 0x80) bytes.unshift(0);
  return der(TAG.INTEGER, Uint8Array.from(bytes));
}

export function derOid(oid: string): Uint8Array {
  const [first, second, ...rest] = oid.split('.').map(Number) as [number, number, ...number[]];
  const bytes = [first * 40 + second, ...rest].flatMap((arc) => {
    const digits = [arc % 128];
    for (let left = Math.floor(arc / 128); left > 0; left = Math.floor(left / 128))
      digits.unshift(0x80 | (left % 128));
    return digits;
  });
  return der(TAG.OID, Uint8Array.from(bytes));
}

/** OIDs told by their bytes: putting those of a certificate into words takes as long as reading all the rest of it. */
export class KnownOids {
  /** By last byte. */
  readonly #oids: { readonly text: string; readonly element: Uint8Array }[][] = Array.from(
    { length: 256 },
    () => [],
  );

  constructor(oids: Iterable<string>) {
    for (const text of oids) {
      const element = derOid(text);
      this.#oids[element.at(-1)!]!.push({ text, element });
    }
  }

  /** The OID whose content stands at `start` to `end`; undefined if it is none of these. */
  find(bytes: Uint8Array, start: number, end: number): string | undefined {
    for (const { text, element } of this.#oids[bytes[end - 1]!]!) {
      // An element this short has a head of two bytes.
      const before = element.length - (end - start);
      let at = before === 2 ? start : end + 1;
      while (at < end && bytes[at] === element[before + at - start]) at++;
      if (at === end) return text;
    }
    return undefined;
  }
}

/** UTCTime until 2049 and GeneralizedTime after it, as RFC 5280 has it. */
export function derTime(date: Date): Uint8Array {
  const text = `${date.toISOString().slice(0, 19).replace(/[-:T]/g, '')}Z`;
  const isUtc = date.getUTCFullYear() < 2050;
  return derText(isUtc ? TAG.UTC_TIME : TAG.GENERALIZED_TIME, isUtc ? text.slice(2) : text);
}
