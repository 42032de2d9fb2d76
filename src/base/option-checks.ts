/** For callers that no type checker watches: a misspelt wish would do nothing, and what does less must not look like what was wished for. */

/** What has no options among its fields, by what it says it is. */
const NO_OPTIONS =
  /^\[object (?:\w*Array|\w*ArrayBuffer|DataView|Date|RegExp|Error|Promise|(?:Weak)?(?:Map|Set)|Number|String|Boolean)\]$/;

/** True of what has fields and is nothing else: no array, Date, Map or bytes. */
export const isObject = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && !NO_OPTIONS.test(Object.prototype.toString.call(value));

/** What a caller handed in, for messages. */
export function textOf(value: unknown): string {
  if (typeof value === 'function') return 'a function';
  if (value === '') return '""';
  if (Array.isArray(value) && value.length === 0) return 'an empty array';
  try {
    return String(value);
  } catch {
    return 'an object';
  }
}

/** RangeError: `object` is none, or has a field that `known` has not. `path` is what the message calls the object. */
export function requireKnownFields(path: string, object: unknown, known: object): void {
  if (!isObject(object)) throw new RangeError(`${path}: got ${kindOf(object)}, want an object`);
  for (const field of Object.keys(object)) {
    if (!Object.hasOwn(known, field))
      throw new RangeError(
        `${path}.${field}: got a field that is none, want ${Object.keys(known).join(', ')}`,
      );
  }
}

/** Of an object its class: its text says little of what it is. */
function kindOf(value: unknown): string {
  if (typeof value !== 'object' || value === null) return textOf(value);
  return Array.isArray(value) ? 'an array' : `a ${Object.prototype.toString.call(value).slice(8, -1)}`;
}

/** RangeError: `got` is none of `choices`. */
export function requireOneOf<Choice extends string>(
  path: string,
  got: unknown,
  choices: readonly Choice[],
): asserts got is Choice {
  if (!choices.includes(got as Choice))
    throw new RangeError(`${path}: got ${textOf(got)}, want ${choices.join(' or ')}`);
}

/** RangeError: `got` is there, and not what `is` asks for. */
export function requireKind(path: string, got: unknown, is: (value: unknown) => boolean, want: string): void {
  if (got !== undefined && !is(got)) throw new RangeError(`${path}: got ${textOf(got)}, want ${want}`);
}

/** RangeError: `got` is no function. */
export function requireFunction(path: string, got: unknown): void {
  if (typeof got !== 'function') throw new RangeError(`${path}: got ${textOf(got)}, want a function`);
}

/** RangeError: `got` is there, and no number; which one it is others check. `of` says what it counts. */
export const requireNumber = (path: string, got: unknown, of: string): void =>
  requireKind(path, got, (value) => typeof value === 'number', `a number of ${of}`);

/** RangeError: `got` is no string. */
export function requireText(path: string, got: unknown): asserts got is string {
  if (typeof got !== 'string') throw new RangeError(`${path}: got ${textOf(got)}, want a string`);
}

/** RangeError: `got` is no bigint from 0 to 2^64 − 1. */
export function requireU64(path: string, got: unknown): void {
  if (typeof got === 'bigint' && BigInt.asUintN(64, got) === got) return;
  throw new RangeError(`${path}: got ${textOf(got)}, want a bigint of 64 bits`);
}

/** RangeError: `got` is no Uint8Array, of `length` bytes where that is given. */
export function requireBytes(path: string, got: unknown, length?: number): void {
  if (!(got instanceof Uint8Array)) throw new RangeError(`${path}: got ${typeof got}, want a Uint8Array`);
  if (length !== undefined && got.length !== length)
    throw new RangeError(`${path}: got ${got.length} bytes, want ${length}`);
}

/** RangeError: `got` is no array. */
export function requireArray(path: string, got: unknown, of: string): void {
  if (!Array.isArray(got)) throw new RangeError(`${path}: got ${typeof got}, want an array of ${of}`);
}

/** RangeError: `got` is no array of Uint8Arrays. */
export function requireFiles(path: string, got: readonly unknown[]): void {
  requireArray(path, got, 'Uint8Arrays');
  for (const [index, file] of got.entries()) requireBytes(`${path}[${index}]`, file);
}

/** RangeError: `got` is no integer within [least, most]. */
export function requireInteger(path: string, got: unknown, least: number, most?: number): void {
  if (Number.isSafeInteger(got) && (got as number) >= least && (got as number) <= (most ?? Infinity)) return;
  const to = most === undefined ? '' : ` to ${most}`;
  throw new RangeError(`${path}: got ${textOf(got)}, want an integer from ${least}${to}`);
}
