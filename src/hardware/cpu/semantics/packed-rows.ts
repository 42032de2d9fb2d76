/** What the groups of 128-bit instructions have in common: a table of what they compute becomes operations and rows. */
import { type I32, i32 } from '../wasm/value.ts';
import { type Group, type OperandContext, type Operation, type Role, WRITE } from './operation.ts';

/** The size of an operation on vectors. */
export const VECTOR = [128] as const;
export const READ_BYTE: Role = { access: 'read', size: 8 };
export const READ_WORD: Role = { access: 'read', size: 16 };
export const READ_DWORD: Role = { access: 'read', size: 32 };
export const READ_QUADWORD: Role = { access: 'read', size: 64 };

/** An immediate byte. */
export const byte = (c: OperandContext, operand: 1 | 2): I32 => i32.wrap(c.readUnsigned(operand, 8));

const NONE: ReadonlySet<string> = new Set();

/**
 * One operation and one row for each entry of a table by mnemonic; 128-bit memory operands must be aligned. `frequent`: mnemonics whose
 * handlers lie in the hot loop.
 */
export function each<T>(
  table: Readonly<Record<string, T>>,
  emit: (c: OperandContext, entry: T) => void,
  roles: readonly Role[],
  options: { readonly sizes?: Operation['sizes']; readonly frequent?: ReadonlySet<string> } = {},
): Group {
  const { sizes = VECTOR, frequent = NONE } = options;
  const destination = roles[0] === WRITE ? 'write' : 'update';
  const mnemonics = Object.keys(table);
  const operation = (mnemonic: string): Operation => ({
    sizes,
    destination,
    hot: frequent.has(mnemonic) ? sizes : undefined,
    emit: (c) => emit(c, table[mnemonic]!),
  });
  const rows = mnemonics.map(
    (mnemonic) => [mnemonic, { operation: mnemonic.toLowerCase(), roles, aligned: true }] as const,
  );
  return {
    operations: Object.fromEntries(
      mnemonics.map((mnemonic) => [mnemonic.toLowerCase(), operation(mnemonic)]),
    ),
    instructions: Object.fromEntries(rows),
  };
}

/** Groups as one. */
export const together = (...groups: readonly Group[]): Group => ({
  operations: Object.assign({}, ...groups.map(({ operations }) => operations)),
  instructions: Object.assign({}, ...groups.map(({ instructions }) => instructions)),
});
