/**
 * C structure layouts, declared once as data: `struct('kvm_regs', { rax: u64, ... })` yields size, alignment, offsets, `encode`,
 * `decode`, and a class of typed accessors over bytes. Rules are those of the System V x86-64 ABI: natural alignment, size rounded
 * up to the largest member's alignment, little-endian. Left out: bit-fields, packed structures, flexible array members (declare the
 * header and the element, see `kvm_cpuid2`).
 */

/** A member's type. `Value` is what `decode` yields, `Input` what `encode` takes, `Access` what an accessor yields. */
export interface Layout<Value, Input = Value, Access = Value> {
  readonly size: number;
  readonly alignment: number;
  read(view: DataView, at: number): Value;
  /** `name` is the member's path, for the message of the RangeError that a value outside the field raises. */
  write(view: DataView, at: number, value: Input, name: string): void;
  /**
   * Refuses what `write` would, in the same words, and a member of a structure that is not there. Integers allocate nothing. Errors, with the member's path `name`: TypeError
   * (not even an `Input`), RangeError (outside the type).
   */
  check(value: Input, name: string): void;
  /** True for padding, which is no member of values and accessors. */
  readonly isPadding?: true;
  /** Compound members: an accessor object over the bytes at `at`. Scalars have none; they are read and written in place. */
  access?(view: DataView, at: number): Access;
}

// biome-ignore lint/suspicious/noExplicitAny: a member of any layout; the concrete types come back through inference
type AnyLayout = Layout<any, any, any>;
type ValueOf<L> = L extends Layout<infer Value, infer _I, infer _A> ? Value : never;
type InputOf<L> = L extends Layout<infer _V, infer Input, infer _A> ? Input : never;
type AccessOf<L> = L extends Layout<infer _V, infer _I, infer Access> ? Access : never;
/** Names of members that carry a value (padding does not). */
type Named<M> = { [K in keyof M]: ValueOf<M[K]> extends Padding ? never : K }[keyof M];

type Members = Readonly<Record<string, AnyLayout>>;
type StructValue<M extends Members> = { -readonly [K in Named<M>]: ValueOf<M[K]> };
type StructInput<M extends Members> = { readonly [K in Named<M>]?: InputOf<M[K]> };
type StructAccess<M extends Members> = { -readonly [K in Named<M>]: AccessOf<M[K]> };
type UnionInput<M extends Members> = {
  readonly [K in keyof M]: { readonly [P in K]: InputOf<M[P]> } & {
    readonly [P in Exclude<keyof M, K>]?: never;
  };
}[keyof M];

export interface StructLayout<M extends Members>
  extends Layout<StructValue<M>, StructInput<M>, StructAccess<M>> {
  readonly name: string;
  /** Bytes from the structure's start to each member. */
  readonly offsets: { readonly [K in keyof M]: number };
  readonly members: M;
  /** The structure's bytes. Members that are left out are 0. RangeError: a value does not fit its member, and which. */
  encode(value: StructInput<M>): Uint8Array<ArrayBuffer>;
  /** `name`: the structure's own where absent. */
  check(value: StructInput<M>, name?: string): void;
  /** Copies the members out of `bytes`, which may be longer than the structure. RangeError: shorter. */
  decode(bytes: Uint8Array): StructValue<M>;
  /** Accessors over `bytes`: getters and setters of one class, made once; scalars are read and written in place. */
  view(bytes: Uint8Array): StructAccess<M>;
}

/** What `pad` reads: nothing. */
export interface Padding {
  readonly padding: true;
}

function refuseType(
  value: unknown,
  want: 'number' | 'bigint' | 'Uint8Array' | 'Int32Array' | 'array' | 'structure',
  name: string,
): never {
  const isObject = typeof value === 'object' && value !== null;
  const word = isObject ? Object.prototype.toString.call(value).slice(8, -1) : String(value);
  const got = value == null ? word : `the ${typeof value} ${word}`;
  const article = want === 'array' || want === 'Int32Array' ? 'an' : 'a';
  throw new TypeError(`${name}: got ${got}, want ${article} ${want}`);
}

/** A structure's entries, which follow it. Errors: TypeError. */
export function checkEntries(entries: readonly unknown[], name: string): void {
  if (!Array.isArray(entries)) refuseType(entries, 'array', name);
}

/** Bytes of which the kernel reads `least`. Errors: TypeError, RangeError (they end before). */
export function checkBytes(value: Uint8Array, least: number, name: string): void {
  if (!(value instanceof Uint8Array)) refuseType(value, 'Uint8Array', name);
  if (value.length < least)
    throw new RangeError(`${name}: got ${value.length} bytes, want at least ${least}`);
}

/** A bitmap of pages, in words of 32. Errors: TypeError. */
export function checkBitmap(value: Int32Array, name: string): void {
  if (!(value instanceof Int32Array)) refuseType(value, 'Int32Array', name);
}

/** The argument of an ioctl that takes no structure: a long, as a JavaScript number. Errors: TypeError, RangeError (no integer, or none that a number holds exactly). */
export function checkLong(value: number, name: string): void {
  if (Number.isSafeInteger(value)) return;
  if (typeof value !== 'number') refuseType(value, 'number', name);
  throw new RangeError(
    `${name}: got ${value}, want an integer${Number.isInteger(value) ? ' of at most 53 bits' : ''}`,
  );
}

function integer(
  size: number,
  least: number,
  most: number,
  read: (view: DataView, at: number) => number,
  write: (view: DataView, at: number, value: number) => void,
): Layout<number> {
  const check = (value: number, name: string): void => {
    if (Number.isInteger(value) && value >= least && value <= most) return;
    if (typeof value !== 'number') refuseType(value, 'number', name);
    throw new RangeError(`${name}: got ${value}, want an integer from ${least} to ${most}`);
  };
  return {
    size,
    alignment: size,
    check,
    read,
    write(view, at, value, name) {
      check(value, name);
      write(view, at, value);
    },
  };
}

function integer64(
  least: bigint,
  most: bigint,
  read: (view: DataView, at: number) => bigint,
  write: (view: DataView, at: number, value: bigint) => void,
): Layout<bigint> {
  const check = (value: bigint, name: string): void => {
    if (typeof value !== 'bigint') refuseType(value, 'bigint', name);
    if (value < least || value > most)
      throw new RangeError(`${name}: got ${value}, want an integer from ${least} to ${most}`);
  };
  return {
    size: 8,
    alignment: 8,
    check,
    read,
    write(view, at, value, name) {
      check(value, name);
      write(view, at, value);
    },
  };
}

export const u8 = integer(
  1,
  0,
  0xff,
  (view, at) => view.getUint8(at),
  (view, at, value) => view.setUint8(at, value),
);
export const u16 = integer(
  2,
  0,
  0xffff,
  (view, at) => view.getUint16(at, true),
  (view, at, value) => view.setUint16(at, value, true),
);
export const u32 = integer(
  4,
  0,
  0xffffffff,
  (view, at) => view.getUint32(at, true),
  (view, at, value) => view.setUint32(at, value, true),
);
export const s16 = integer(
  2,
  -0x8000,
  0x7fff,
  (view, at) => view.getInt16(at, true),
  (view, at, value) => view.setInt16(at, value, true),
);
export const s32 = integer(
  4,
  -0x80000000,
  0x7fffffff,
  (view, at) => view.getInt32(at, true),
  (view, at, value) => view.setInt32(at, value, true),
);
export const u64 = integer64(
  0n,
  0xffff_ffff_ffff_ffffn,
  (view, at) => view.getBigUint64(at, true),
  (view, at, value) => view.setBigUint64(at, value, true),
);
export const s64 = integer64(
  -0x8000_0000_0000_0000n,
  0x7fff_ffff_ffff_ffffn,
  (view, at) => view.getBigInt64(at, true),
  (view, at, value) => view.setBigInt64(at, value, true),
);

/** `size` bytes without meaning: zero when encoded, no member of values and accessors. */
export const pad = (size: number): Layout<Padding> => ({
  size,
  alignment: 1,
  isPadding: true,
  read: () => ({ padding: true }),
  write() {},
  check() {},
});

/** u8[count]. `decode` copies, an accessor is a view. */
export const bytes = (count: number): Layout<Uint8Array, Uint8Array, Uint8Array> => {
  const access = (view: DataView, at: number) => new Uint8Array(view.buffer, view.byteOffset + at, count);
  const check = (value: Uint8Array, name: string): void => {
    if (!(value instanceof Uint8Array)) refuseType(value, 'Uint8Array', name);
    if (value.length > count)
      throw new RangeError(`${name}: got ${value.length} bytes, want at most ${count}`);
  };
  return {
    size: count,
    alignment: 1,
    check,
    read: (view, at) => access(view, at).slice(),
    write(view, at, value, name) {
      check(value, name);
      const target = access(view, at);
      target.fill(0, value.length);
      target.set(value);
    },
    access,
  };
};

/** Accessor of an array: elements by number. */
export interface ArrayAccess<Access, Input> {
  readonly length: number;
  /** A scalar's value, or the accessor of a compound element. */
  at(index: number): Access;
  set(index: number, value: Input): void;
}

/** C's `element[count]`. Shorter inputs are filled up with zeros. */
export function array<Value, Input, Access>(
  element: Layout<Value, Input, Access>,
  count: number,
): Layout<Value[], readonly Input[], ArrayAccess<Access, Input>> {
  const { size } = element;
  const checkIndex = (index: number, name: string): void => {
    if (!Number.isInteger(index) || index < 0 || index >= count) {
      throw new RangeError(`${name}: got index ${index}, want 0 to ${count - 1}`);
    }
  };
  const checkLength = (values: readonly Input[], name: string): void => {
    checkEntries(values, name);
    if (values.length > count)
      throw new RangeError(`${name}: got ${values.length} elements, want at most ${count}`);
  };
  return {
    size: size * count,
    alignment: element.alignment,
    read: (view, at) => Array.from({ length: count }, (_, i) => element.read(view, at + i * size)),
    check(values, name) {
      checkLength(values, name);
      for (let i = 0; i < values.length; i++) element.check(values[i]!, `${name}[${i}]`);
    },
    write(view, at, values, name) {
      checkLength(values, name);
      zero(view, at, size * count);
      values.forEach((value, i) => {
        element.write(view, at + i * size, value, `${name}[${i}]`);
      });
    },
    access(view, at) {
      const compound = element.access;
      const parts = compound && Array.from({ length: count }, (_, i) => compound(view, at + i * size));
      return {
        length: count,
        at(index) {
          checkIndex(index, 'at');
          return parts ? parts[index]! : (element.read(view, at + index * size) as unknown as Access);
        },
        set(index, value) {
          checkIndex(index, 'set');
          element.write(view, at + index * size, value, `[${index}]`);
        },
      };
    },
  };
}

const zero = (view: DataView, at: number, size: number): void => {
  new Uint8Array(view.buffer, view.byteOffset + at, size).fill(0);
};

const alignUp = (value: number, alignment: number): number => Math.ceil(value / alignment) * alignment;

/** C's `struct name { members }`, in order. */
export function struct<const M extends Members>(name: string, members: M): StructLayout<M> {
  let end = 0;
  const offsets: Record<string, number> = {};
  for (const [member, layout] of Object.entries(members)) {
    end = alignUp(end, layout.alignment);
    offsets[member] = end;
    end += layout.size;
  }
  return compound(name, members, offsets as StructLayout<M>['offsets'], end);
}

/**
 * C's `union name { members }`. `decode` yields every member's reading of the same bytes, `encode` takes exactly one.
 */
export function union<const M extends Members>(
  name: string,
  members: M,
): Layout<StructValue<M>, UnionInput<M>, StructAccess<M>> &
  Pick<StructLayout<M>, 'name' | 'offsets' | 'members'> {
  const offsets = Object.fromEntries(Object.keys(members).map((member) => [member, 0]));
  const end = Math.max(...Object.values(members).map((layout) => layout.size));
  const layout = compound(name, members, offsets as StructLayout<M>['offsets'], end);
  const given = (value: UnionInput<M>, path: string): keyof M & string => {
    const all = Object.keys(value).filter((key) => (value as Record<string, unknown>)[key] !== undefined);
    if (all.length !== 1) throw new RangeError(`${path}: got ${all.length} members, want exactly one`);
    return all[0]!;
  };
  return {
    ...layout,
    check(value, path) {
      const member = given(value, path);
      members[member]?.check((value as Record<string, unknown>)[member], `${path}.${member}`);
    },
    write(view, at, value, path) {
      given(value, path);
      layout.write(view, at, value as StructInput<M>, path);
    },
  };
}

function compound<const M extends Members>(
  name: string,
  members: M,
  offsets: StructLayout<M>['offsets'],
  end: number,
): StructLayout<M> {
  const alignment = Math.max(1, ...Object.values(members).map((layout) => layout.alignment));
  const size = alignUp(end, alignment);
  const all: [string, AnyLayout, number][] = Object.entries(members).map(([member, layout]) => [
    member,
    layout,
    offsets[member as keyof M],
  ]);
  const valued = all.filter(([, layout]) => !layout.isPadding);
  const paths = valued.map(([member]) => `${name}.${member}`);

  const Accessors = class {
    readonly #view: DataView;
    readonly #at: number;
    readonly #parts: unknown[];
    constructor(view: DataView, at: number) {
      this.#view = view;
      this.#at = at;
      this.#parts = valued.map(([, layout, offset]) => layout.access?.(view, at + offset));
    }
    static read(self: Self, layout: AnyLayout, offset: number): unknown {
      return layout.read(self.#view, self.#at + offset);
    }
    static write(self: Self, layout: AnyLayout, offset: number, value: unknown, path: string): void {
      layout.write(self.#view, self.#at + offset, value, path);
    }
    static part(self: Self, index: number): unknown {
      return self.#parts[index];
    }
  };
  type Self = InstanceType<typeof Accessors>;
  valued.forEach(([member, layout, offset], i) => {
    const path = paths[i]!;
    Object.defineProperty(Accessors.prototype, member, {
      enumerable: true,
      get: layout.access
        ? function (this: Self) {
            return Accessors.part(this, i);
          }
        : function (this: Self) {
            return Accessors.read(this, layout, offset);
          },
      set(this: Self, value: unknown) {
        Accessors.write(this, layout, offset, value, path);
      },
    });
  });

  const viewOf = (bytes: Uint8Array): DataView => {
    if (bytes.length < size) throw new RangeError(`${name}: got ${bytes.length} bytes, want ${size}`);
    return new DataView(bytes.buffer, bytes.byteOffset, size);
  };
  const layout: StructLayout<M> = {
    name,
    size,
    alignment,
    offsets,
    members,
    read(view, at) {
      const value: Record<string, unknown> = {};
      for (const [member, part, offset] of valued) value[member] = part.read(view, at + offset);
      return value as StructValue<M>;
    },
    write(view, at, value, path) {
      zero(view, at, size);
      for (const [member, part, offset] of valued) {
        const given = (value as Record<string, unknown>)[member];
        if (given !== undefined) part.write(view, at + offset, given, `${path}.${member}`);
      }
    },
    check(value, path) {
      if (typeof value !== 'object' || value === null) refuseType(value, 'structure', path ?? name);
      for (const [i, [member, part]] of valued.entries()) {
        const own = path === undefined ? paths[i]! : `${path}.${member}`;
        part.check((value as Record<string, unknown>)[member], own);
      }
    },
    access: (view, at) => new Accessors(view, at) as unknown as StructAccess<M>,
    encode(value) {
      const bytes = new Uint8Array(size);
      layout.write(new DataView(bytes.buffer), 0, value, name);
      return bytes;
    },
    decode: (bytes) => layout.read(viewOf(bytes), 0),
    view: (bytes) => new Accessors(viewOf(bytes), 0) as unknown as StructAccess<M>,
  };
  return layout;
}
