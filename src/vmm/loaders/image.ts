/** What a loader makes of an image: pieces of the file and where they belong, and where the guest starts. */
import { VmmError } from '../error.ts';

export interface ImageSegment {
  /** Bytes of the file. */
  readonly bytes: Uint8Array;
  /** Guest-physical address of the first one. */
  readonly address: number;
  /** Bytes in memory; those beyond the file's are zero. */
  readonly memoryBytes: number;
}

export interface LoadedImage {
  readonly segments: readonly ImageSegment[];
  readonly entry: number;
}

/** A loader's error: which field of which image, what it holds, what it should hold. */
export const imageError = (image: string, field: string, got: string, want: string): VmmError =>
  new VmmError(`${image}: ${field}: got ${got}, want ${want}`);
