/** For callers that no type checker watches: a misspelt wish would do nothing, and what does less must not look like what was wished for. */

/** RangeError: `object` is none, or has a field that `known` has not. `path` is what the message calls the object. */
export function requireKnownFields(path: string, object: unknown, known: object): void {
  if (typeof object !== 'object' || object === null)
    throw new RangeError(`${path}: got ${String(object)}, want an object`);
  for (const field of Object.keys(object)) {
    if (!Object.hasOwn(known, field))
      throw new RangeError(
        `${path}.${field}: got a field that is none, want ${Object.keys(known).join(', ')}`,
      );
  }
}

/** RangeError: `got` is none of `choices`. */
export function requireOneOf(path: string, got: unknown, choices: readonly string[]): void {
  if (!choices.includes(got as string))
    throw new RangeError(`${path}: got ${String(got)}, want ${choices.join(' or ')}`);
}
