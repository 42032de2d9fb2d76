/** For callers that no type checker watches: a misspelt wish would check nothing, and a verdict that checks less must not look like one that holds. */

/** RangeError: `object` has a field that `known` has not. `path` is what the message calls the object, with its dot. */
export function requireKnownFields(path: string, object: object, known: object): void {
  for (const field of Object.keys(object)) {
    if (!Object.hasOwn(known, field))
      throw new RangeError(
        `${path}${field}: got a field that is none, want ${Object.keys(known).join(', ')}`,
      );
  }
}

/** RangeError: `got` is none of `choices`. */
export function requireOneOf(path: string, got: string, choices: readonly string[]): void {
  if (!choices.includes(got)) throw new RangeError(`${path}: got ${got}, want ${choices.join(' or ')}`);
}
