import { NotImplementedError } from '../../../base/errors.ts';
import type { GuestMessage } from '../guest-request.ts';
export function answerExport(_m: GuestMessage): Uint8Array {
  throw new NotImplementedError('guest message');
}
export function answerImport(_m: GuestMessage): Uint8Array {
  throw new NotImplementedError('guest message');
}
export function answerAbsorb(_m: GuestMessage): Uint8Array {
  throw new NotImplementedError('guest message');
}
export function answerAbsorbNoAgent(_m: GuestMessage): Uint8Array {
  throw new NotImplementedError('guest message');
}
export function answerVmrk(_m: GuestMessage): Uint8Array {
  throw new NotImplementedError('guest message');
}
