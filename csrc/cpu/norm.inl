// The singular value of a single column: its norm. Compensated sums of 256 squares in double, and a compensated sum of those.

template <typename Element, typename Scalar>
static void norm_of_column(const TallView& a, int exponent, Scalar* value) {
  constexpr int64_t piece = 256;
  const Scale<double> scale = Scale<double>::of(exponent);
  double column[piece], sum = 0, lost = 0;
  for (int64_t first = 0; first < a.m; first += piece) {
    const int64_t rows = a.m - first < piece ? a.m - first : piece;
    load_rows<double, Element>(a, first, rows, 1, scale, column, 1);
    const double term = compensated_dot(column, column, rows) - lost, total = sum + term;
    lost = (total - sum) - term;
    sum = total;
  }
  *value = static_cast<Scalar>(__builtin_ldexp(__builtin_sqrt(sum - lost), -exponent));
}
