/**
 * The members of C's structures by their names in C: our requests say `guestPhysAddr` where C has `guest_phys_addr`. Elements of arrays and bytes stay as they are. No
 * behaviour.
 */

/** `guestPhysAddr` is `guest_phys_addr`. */
type NameInC<Name extends string> = Name extends `${infer First}${infer Rest}`
  ? `${First extends Lowercase<First> ? First : `_${Lowercase<First>}`}${NameInC<Rest>}`
  : '';
type InC<Value> = Value extends number | bigint | Uint8Array | readonly unknown[] ? Value : MembersOf<Value>;
export type MembersOf<Request> = {
  -readonly [Name in keyof Request as NameInC<Name & string>]: InC<Request[Name]>;
};

const namesInC = new Map<string, string>();

function nameInC(name: string): string {
  let known = namesInC.get(name);
  if (known === undefined) {
    known = name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    namesInC.set(name, known);
  }
  return known;
}

const isStructure = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && !Array.isArray(value) && !ArrayBuffer.isView(value);

/** The request with its members' names in C, those of structures in it too; what is none comes back as it is, for a layout to refuse. */
export function membersOf<Request extends object>(request: Request): MembersOf<Request> {
  if (!isStructure(request)) return request;
  const members: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(request))
    members[nameInC(name)] = isStructure(value) ? membersOf(value) : value;
  return members as MembersOf<Request>;
}
