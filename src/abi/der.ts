/**
 * DER (X.690), read strictly and written: as much as X.509 certificates, CRLs and keys need. Lengths must be definite and minimal,
 * integers minimal, and nothing may follow what was read. Left out: tags above 30, and types that certificates of AMD do not use.
 *
 * Own code in place of a library: over the three certificates of a report, asn1js 3.1 takes 3 times, pkijs 4.0 and @peculiar/x509 2.2 take 5 times as long as
 * all four signature checks (this reader: a sixth of them), and all three read what is no DER: trailing bytes, longer lengths than needed, indefinite
 * ones. test/attest/x509-library.test.ts holds reader and writer against pkijs.
 */

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

export interface DerElement {
  readonly tag: number;
  /** The whole element: tag, length, content. */
  readonly bytes: Uint8Array;
  readonly content: Uint8Array;
}

const tagName = (tag: number): string =>
  Object.entries(TAG).find(([, value]) => value === tag)?.[0] ?? `tag 0x${tag.toString(16).padStart(2, '0')}`;

/** Reads elements one after another. `path` names what is read, for messages. */
export class DerReader {
  readonly path: string;
  readonly #bytes: Uint8Array;
  #at = 0;

  constructor(bytes: Uint8Array, path: string) {
    this.#bytes = bytes;
    this.path = path;
  }

  get isAtEnd(): boolean {
    return this.#at === this.#bytes.length;
  }

  /** The next element's tag, without taking it; undefined at the end. */
  get nextTag(): number | undefined {
    return this.#bytes[this.#at];
  }

  /** Throws DerError about a field of what is read. */
  fail(field: string, what: string): never {
    throw new DerError(`${this.path}.${field}: ${what}`);
  }

  /** The next element, which must have `tag`. */
  element(field: string, tag: number): DerElement {
    const bytes = this.#bytes;
    const start = this.#at;
    const got = bytes[start];
    if (got === undefined) this.fail(field, `got the end, want ${tagName(tag)}`);
    if (got !== tag) this.fail(field, `got ${tagName(got)}, want ${tagName(tag)}`);
    const first = bytes[start + 1];
    if (first === undefined) this.fail(field, 'got the end, want a length');
    let length = first;
    let content = start + 2;
    if (first >= 0x80) {
      const count = first & 0x7f;
      if (count === 0 || count > 4) this.fail(field, `got a length of ${count} bytes, want 1 to 4`);
      length = 0;
      for (let i = 0; i < count; i++) length = length * 256 + (bytes[content + i] ?? 0);
      content += count;
      if (length < 0x80 || length < 2 ** (8 * (count - 1))) {
        this.fail(field, `got length ${length} in ${count} bytes, want it in as few as possible`);
      }
    }
    const end = content + length;
    if (end > bytes.length) {
      this.fail(field, `got ${Math.max(0, bytes.length - content)} bytes, want ${length} (truncated)`);
    }
    this.#at = end;
    return { tag: got, bytes: bytes.subarray(start, end), content: bytes.subarray(content, end) };
  }

  /** The next element, whatever it is, without taking it. */
  nextElement(field: string): DerElement {
    const at = this.#at;
    const element = this.element(field, this.nextTag ?? TAG.SEQUENCE);
    this.#at = at;
    return element;
  }

  /** A reader of the next element's inside. */
  inside(field: string, tag: number = TAG.SEQUENCE): DerReader {
    return new DerReader(this.element(field, tag).content, `${this.path}.${field}`);
  }

  /** A reader of [number]'s inside, if that comes next. */
  optional(field: string, number: number): DerReader | undefined {
    return this.nextTag === contextTag(number) ? this.inside(field, contextTag(number)) : undefined;
  }

  /** Big-endian two's complement, minimal. */
  integerBytes(field: string): Uint8Array {
    const { content } = this.element(field, TAG.INTEGER);
    if (content.length === 0) this.fail(field, 'got an INTEGER without bytes, want at least one');
    if (
      content.length > 1 &&
      (content[0] === 0 || content[0] === 0xff) &&
      content[0] >> 7 === content[1]! >> 7
    ) {
      this.fail(field, 'got an INTEGER with a superfluous byte, want it minimal');
    }
    return content;
  }

  /** A small INTEGER, at least 0. */
  integer(field: string): number {
    const content = this.integerBytes(field);
    if (content[0]! >= 0x80 || content.length > 6) {
      this.fail(field, `got ${toHex(content)}, want an INTEGER from 0 to 2^47 - 1`);
    }
    return content.reduce((value, byte) => value * 256 + byte, 0);
  }

  oid(field: string): string {
    const { content } = this.element(field, TAG.OID);
    let text = '';
    let arc = 0;
    let isWithinArc = false;
    for (let at = 0; at < content.length; at++) {
      const byte = content[at]!;
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
    return this.element(field, TAG.OCTET_STRING).content;
  }

  /** A BIT STRING of whole bytes. */
  bits(field: string): Uint8Array {
    const { content } = this.element(field, TAG.BIT_STRING);
    if (content[0] !== 0) this.fail(field, `got ${content[0] ?? 'no'} unused bits, want 0`);
    return content.subarray(1);
  }

  /** A BIT STRING of flags: true at i where bit i is set. */
  flags(field: string): readonly boolean[] {
    const { content } = this.element(field, TAG.BIT_STRING);
    const unused = content[0];
    if (unused === undefined || unused > 7 || (unused > 0 && content.length === 1)) {
      this.fail(field, `got ${unused ?? 'no'} unused bits, want 0 to 7`);
    }
    if ((content.at(-1)! & ((1 << unused) - 1)) !== 0 && content.length > 1) {
      this.fail(field, 'got unused bits that are set, want them clear');
    }
    return Array.from(
      { length: 8 * (content.length - 1) - unused },
      (_, i) => ((content[1 + (i >> 3)]! >> (7 - (i & 7))) & 1) === 1,
    );
  }

  boolean(field: string): boolean {
    const { content } = this.element(field, TAG.BOOLEAN);
    if (content.length !== 1 || (content[0] !== 0 && content[0] !== 0xff)) {
      this.fail(field, `got BOOLEAN ${toHex(content)}, want 00 or ff`);
    }
    return content[0] === 0xff;
  }

  /** NULL. */
  nothing(field: string): void {
    const { length } = this.element(field, TAG.NULL).content;
    if (length > 0) this.fail(field, `got ${length} bytes in a NULL, want none`);
  }

  /** Text of any string type that names use. */
  text(field: string): string {
    const tag = this.nextTag;
    if (tag !== TAG.UTF8_STRING && tag !== TAG.PRINTABLE_STRING && tag !== TAG.IA5_STRING) {
      this.fail(field, `got ${tag === undefined ? 'the end' : tagName(tag)}, want a string`);
    }
    const { content } = this.element(field, tag);
    if (tag !== TAG.UTF8_STRING && content.some((byte) => byte >= 0x80)) {
      this.fail(field, `got ${toHex(content)}, want ASCII`);
    }
    try {
      return utf8.decode(content);
    } catch {
      return this.fail(field, `got ${toHex(content)}, want UTF-8`);
    }
  }

  /** UTCTime or GeneralizedTime in the form of RFC 5280: to the second, in Zulu time. */
  time(field: string): Date {
    const tag = this.nextTag === TAG.GENERALIZED_TIME ? TAG.GENERALIZED_TIME : TAG.UTC_TIME;
    const { content } = this.element(field, tag);
    const yearDigits = tag === TAG.UTC_TIME ? 2 : 4;
    const text = String.fromCharCode(...content.subarray(0, 20));
    if (content.length !== yearDigits + 11 || !/^\d+Z$/.test(text)) {
      const want = `${tag === TAG.UTC_TIME ? 'YY' : 'YYYY'}MMDDHHMMSSZ`;
      this.fail(field, `got time ${JSON.stringify(text)}, want ${want}`);
    }
    const number = (at: number): number => Number(text.slice(at, at + 2));
    const [month, day, hour, minute, second] = [0, 2, 4, 6, 8].map((at) => number(yearDigits + at)) as [
      number,
      number,
      number,
      number,
      number,
    ];
    const short = number(0);
    const year = tag === TAG.UTC_TIME ? short + (short < 50 ? 2000 : 1900) : Number(text.slice(0, 4));
    const date = new Date(Date.UTC(year, month - 1, day, hour, minute, second));
    if (
      date.getUTCMonth() !== month - 1 ||
      date.getUTCDate() !== day ||
      hour > 23 ||
      minute > 59 ||
      second > 59
    ) {
      this.fail(field, `got time ${JSON.stringify(text)}, want one that exists`);
    }
    return date;
  }

  /** Nothing may follow. */
  end(): void {
    const left = this.#bytes.length - this.#at;
    if (left > 0) throw new DerError(`${this.path}: got ${left} bytes after its last field, want none`);
  }
}

const utf8 = new TextDecoder('utf-8', { fatal: true });
const toHex = (bytes: Uint8Array): string =>
  Array.from(bytes.subarray(0, 32), (byte) => byte.toString(16).padStart(2, '0')).join('') +
  (bytes.length > 32 ? '...' : '');

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

/** UTCTime until 2049 and GeneralizedTime after it, as RFC 5280 has it. */
export function derTime(date: Date): Uint8Array {
  const text = `${date.toISOString().slice(0, 19).replace(/[-:T]/g, '')}Z`;
  const isUtc = date.getUTCFullYear() < 2050;
  return derText(isUtc ? TAG.UTC_TIME : TAG.GENERALIZED_TIME, isUtc ? text.slice(2) : text);
}
